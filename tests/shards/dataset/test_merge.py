from __future__ import annotations

import json
import os
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shards.cli import main
from shards.dataset.index import index
from shards.dataset.info import Source
from shards.dataset.manifest import MANIFEST_NAME
from shards.dataset.merge import merge
from shards.dataset.opened import open_dataset
from shards.doctor.diagnose import diagnose
from shards.doctor.repair import repair
from shards.errors import InputError
from shards.formats import SHARDS
from shards.geometry import Scale
from shards.reader import Reader
from shards.storage import open_storage
from tests.support.command import run
from tests.support.damage import flip
from tests.support.datasets import write_dataset
from tests.support.servers import make_bucket, s3_environment, s3_server

VAE = Source("a", "vae-0")


def part(root: Path, prefix: str, samples: int = 5, seed: int = 0, **values: object) -> Path:
    keys = [f"{prefix}/{number}" for number in range(samples)]
    write_dataset(root, samples, keys=keys, seed=seed, shard_bytes=4096, vae=VAE, **values)  # type: ignore[arg-type]
    text = root / "dataset.json"
    text.write_text(
        json.dumps(json.loads(text.read_text()) | {"text_encoder": {"source": "t", "fingerprint": "t5"}})
    )
    return root


def latents(root: Path | str) -> dict[str, torch.Tensor]:
    dataset = open_dataset(root)
    with Reader(dataset, threads=1) as reader:
        return {sample.key: sample.latents for sample in reader.read(range(len(dataset.manifest)))}


def test_all_samples_of_all_datasets_are_there(tmp_path: Path) -> None:
    a, b, c = (part(tmp_path / name, name, seed=seed) for seed, name in enumerate("abc"))
    report = merge([a, b, c], tmp_path / "out")
    expected = latents(a) | latents(b) | latents(c)
    found = latents(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert diagnose(tmp_path / "out").findings.listed() == []
    assert report.added == report.linked == len(report.manifest.shards)


def test_the_manifest_is_what_an_index_makes(tmp_path: Path) -> None:
    merge([part(tmp_path / "a", "a"), part(tmp_path / "b", "b", seed=1)], tmp_path / "out")
    written = (tmp_path / "out" / MANIFEST_NAME).read_bytes()
    index(tmp_path / "out")
    assert (tmp_path / "out" / MANIFEST_NAME).read_bytes() == written


@pytest.mark.parametrize("copy", [False, True])
def test_shards_are_linked_unless_copies_are_asked_for(tmp_path: Path, copy: bool) -> None:
    a = part(tmp_path / "a", "a")
    report = merge([a], tmp_path / "out", copy=copy)
    for source, target in zip(open_dataset(a).manifest.shards, report.manifest.shards, strict=True):
        assert os.path.samefile(a / source, tmp_path / "out" / target) != copy
    assert report.linked == (0 if copy else report.added)


def test_merging_into_a_dataset_appends(tmp_path: Path) -> None:
    a, b, c = (part(tmp_path / name, name, seed=seed) for seed, name in enumerate("abc"))
    merge([a], tmp_path / "out")
    merge([b, c], tmp_path / "out")
    merge([a, b, c], tmp_path / "at once")
    assert (
        open_dataset(tmp_path / "out").manifest.fingerprint
        == open_dataset(tmp_path / "at once").manifest.fingerprint
    )
    merge([b], c)
    assert set(latents(c)) == {f"{name}/{number}" for name in "bc" for number in range(5)}


def test_an_interrupted_merge_is_completed_by_the_same_call(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", "a"), part(tmp_path / "b", "b", seed=1)
    merge([a, b], tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "out")
    for name in (MANIFEST_NAME, "dataset.json"):
        (tmp_path / "out" / name).unlink()
    (tmp_path / "out/shards/00-000000.tar").unlink()
    merge([a, b], tmp_path / "out")
    for path in (tmp_path / "whole").rglob("*.*"):
        assert (tmp_path / "out" / path.relative_to(tmp_path / "whole")).read_bytes() == path.read_bytes()
    assert not [path for path in (tmp_path / "out").rglob("*") if path.name.endswith(".tmp")]


def test_an_interrupted_addition_is_completed_by_the_same_call(tmp_path: Path) -> None:
    a, b, c = (part(tmp_path / name, name, seed=seed) for seed, name in enumerate("abc"))
    merge([a], tmp_path / "out")
    before = (tmp_path / "out" / MANIFEST_NAME).read_bytes()
    names = {entry.path for entry in open_storage(tmp_path / "out").list(SHARDS)}
    merge([b, c], tmp_path / "out")
    after = {entry.path for entry in open_storage(tmp_path / "out").list(SHARDS)}
    (tmp_path / "out" / MANIFEST_NAME).write_bytes(before)
    (tmp_path / "out" / min(after - names)).unlink()
    merge([b, c], tmp_path / "out")
    assert {entry.path for entry in open_storage(tmp_path / "out").list(SHARDS)} == after
    assert len(latents(tmp_path / "out")) == 15


def test_shards_that_no_manifest_lists_are_not_written_over(tmp_path: Path) -> None:
    a, b, c = (part(tmp_path / name, name, seed=seed) for seed, name in enumerate("abc"))
    merge([a], tmp_path / "out")
    before = (tmp_path / "out" / MANIFEST_NAME).read_bytes()
    merge([b], tmp_path / "out")
    (tmp_path / "out" / MANIFEST_NAME).write_bytes(before)  # those of b have names and sizes like those of c
    merge([c], tmp_path / "out")
    assert latents(tmp_path / "out").keys() == latents(a).keys() | latents(c).keys()
    index(tmp_path / "out")
    assert len(latents(tmp_path / "out")) == 15


def test_two_merges_into_one_place_lose_nothing(tmp_path: Path) -> None:
    roots = [part(tmp_path / name, name, seed=seed) for seed, name in enumerate("abcd")]
    merge([roots[0]], tmp_path / "out")
    begun, go = threading.Barrier(2), threading.Event()

    def slowly(total: int) -> None:
        if not go.is_set():
            begun.wait(20)
            assert go.wait(20)

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(merge, [roots[1]], tmp_path / "out", on_shard=slowly)
        begun.wait(20)
        with pytest.raises(
            InputError, match=rf"out is being written by process {os.getpid()} on .*: wait until"
        ):
            merge([roots[2]], tmp_path / "out")
        go.set()
        first.result()
    merge(roots[2:], tmp_path / "out")
    assert len(latents(tmp_path / "out")) == 20
    assert diagnose(tmp_path / "out").findings.listed() == []


def test_a_missing_shard_leaves_no_manifest(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", "a"), part(tmp_path / "b", "b", seed=1)
    next((b / "shards").iterdir()).unlink()
    with pytest.raises(
        InputError, match=r"b/shards/\d+.tar is not there, but manifest.parquet names it: put it back"
    ):
        merge([a, b], tmp_path / "out")
    assert not (tmp_path / "out" / MANIFEST_NAME).exists()


def test_a_key_of_two_datasets_is_refused_naming_both(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", "a"), part(tmp_path / "b", "a", seed=1)
    with pytest.raises(InputError) as error:
        merge([a, b], tmp_path / "out")
    assert str(error.value) == (
        f"key 'a/0' is in {a} (shards/000000.tar) and in {b} (shards/000000.tar): keys lie in the shards and must be "
        "unique, so leave one dataset out, or encode it again from a table with other paths (5 keys in two)"
    )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("model", "own"), [("vae", "vae-0"), ("text_encoder", "t5")])
def test_another_model_is_refused_naming_both_fingerprints(tmp_path: Path, model: str, own: str) -> None:
    a = part(tmp_path / "a", "a")
    other = replace(open_dataset(a).info, **{model: Source("b", "another")})
    write_dataset(tmp_path / "b", 3, keys=["x", "y", "z"], info=other)
    with pytest.raises(InputError) as error:
        merge([a, tmp_path / "b"], tmp_path / "out")
    assert str(error.value) == (
        f"{a} and {tmp_path / 'b'} come from different models: {model} fingerprint {own} and another; "
        "encode both with the same model"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"channels": 6}, r"channels 4 and 6"),
        ({"text_width": 8}, r"text_width 16 and 8"),
        ({"scale": Scale(8, 32)}, r"scale Scale\(temporal=4, spatial=8\) and"),
    ],
)
def test_other_sizes_are_refused(tmp_path: Path, values: dict[str, object], message: str) -> None:
    a, b = part(tmp_path / "a", "a"), part(tmp_path / "b", "b", seed=1, **values)
    with pytest.raises(InputError, match=message):
        merge([a, b], tmp_path / "out")


def test_what_cannot_be_a_target_is_refused(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", "a"), part(tmp_path / "b", "b", seed=1)
    with pytest.raises(InputError, match="both a source and the target"):
        merge([a, b], a)
    (b / MANIFEST_NAME).unlink()
    with pytest.raises(InputError, match=r"b/shards/000000.tar is in no manifest: run `ltx-shards index"):
        merge([a], b)


def test_what_a_repair_left_out_stays_out(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", "a"), part(tmp_path / "b", "b", seed=1)
    flip(b, 1)
    repair(diagnose(b))
    merge([a, b], tmp_path / "out")
    diagnosis = diagnose(tmp_path / "out")
    assert diagnosis.sound
    assert (len(diagnosis.mended), diagnosis.passed_over) == (9, 1)


def test_datasets_are_joined_in_an_object_store(tmp_path: Path) -> None:
    a, b = part(tmp_path / "a", "a"), part(tmp_path / "b", "b", seed=1)
    with s3_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(endpoint).items():
            patch.setenv(name, value)
        url = f"{make_bucket(endpoint, 'merged')}/data"
        assert merge([a], url).linked == 0
        merge([b], url)
        assert latents(url).keys() == {f"{name}/{number}" for name in "ab" for number in range(5)}
        merge([url], tmp_path / "back")
    assert (
        open_dataset(tmp_path / "back").manifest.fingerprint
        == merge([a, b], tmp_path / "o").manifest.fingerprint
    )


def test_the_command_says_what_it_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = part(tmp_path / "a", "a", 3), part(tmp_path / "b", "b", 2, seed=1)
    monkeypatch.setattr(sys, "argv", ["ltx-shards", "merge", str(a), str(b), "--out", str(tmp_path / "out")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    manifest = open_dataset(tmp_path / "out").manifest
    count = len(manifest.shards)
    assert capsys.readouterr().out == (
        f"{tmp_path / 'out'}: 5 samples in {count} shards, {count} of them new ({count} as hard links), "
        f"fingerprint {manifest.fingerprint}\n"
    )


def test_what_the_target_has_already_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b, c = (part(tmp_path / name, name, seed=seed) for seed, name in enumerate("abc"))
    out = tmp_path / "out"
    merge([a, b], out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.is_file()}
    assert run(monkeypatch, "merge", a, b, "--out", out) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.*") if path.is_file()} == before
    printed = capsys.readouterr().out.splitlines()
    assert printed[:2] == [f"{root}: its samples are in {out} already" for root in (a, b)]
    report = merge([b, c], out)
    assert (report.there, len(report.manifest)) == ((b,), 15)
    assert latents(out).keys() == latents(a).keys() | latents(b).keys() | latents(c).keys()
    gone = report.manifest.shards[0]
    (out / gone).unlink()
    with pytest.raises(InputError) as error:
        merge([a], out)
    assert str(error.value) == (
        f"{out}/{gone} is not there, but manifest.parquet names it: put it back, or run "
        f"`ltx-shards doctor {out} --repair`"
    )


def test_other_samples_of_the_same_keys_are_not_taken_for_those_of_the_target(tmp_path: Path) -> None:
    a, more = part(tmp_path / "a", "a"), part(tmp_path / "more", "a", samples=7)
    other = part(tmp_path / "other", "a", seed=1)
    merge([a], tmp_path / "out")
    for root in (more, other):
        with pytest.raises(InputError, match="key 'a/0' is in"):
            merge([root], tmp_path / "out")
