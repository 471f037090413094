from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_trainer.feed.conditioning import reference_scale
from shards.cli import main
from shards.dataset.convert import convert
from shards.dataset.index import index
from shards.dataset.manifest import MANIFEST_NAME
from shards.dataset.opened import open_dataset
from shards.doctor.diagnose import diagnose
from shards.doctor.finding import EXAMPLES, KINDS
from shards.doctor.repair import repair
from shards.doctor.survey import fitting
from shards.errors import InputError
from shards.formats.mds import COLUMNS, read_mds
from shards.geometry import Grid
from shards.storage import Folder, open_storage
from tests.support import mosaic
from tests.support.damage import edit_manifest, flip
from tests.support.datasets import GRIDS, write_dataset
from tests.support.scenarios import SAMPLES, SCENARIOS, one_of, sound_dataset
from tests.support.servers import make_bucket, s3_environment, s3_server, without_ranges

sizes = st.integers(1, 4)
grids = st.tuples(sizes, sizes, sizes)


def found(root: Path) -> dict[str, int]:
    return {finding.kind: finding.count for finding in diagnose(root, threads=2).findings.listed()}


@settings(max_examples=15, deadline=None)
@given(
    samples=st.integers(1, 25),
    grid_list=st.lists(grids, min_size=1, max_size=4),
    referenced=st.booleans(),
    shard_bytes=st.integers(1, 20_000),
)
def test_a_dataset_just_written_is_sound(
    tmp_path_factory: pytest.TempPathFactory,
    samples: int,
    grid_list: list[tuple[int, int, int]],
    referenced: bool,
    shard_bytes: int,
) -> None:
    root = tmp_path_factory.mktemp("dataset")
    dataset = write_dataset(
        root,
        samples,
        grids=grid_list,
        references=grid_list if referenced else [None],
        shard_bytes=shard_bytes,
    )
    diagnosis = diagnose(root)
    assert diagnosis.sound
    assert diagnosis.findings.listed() == []
    assert diagnosis.changes.lines() == []
    assert diagnosis.mended.fingerprint == dataset.manifest.fingerprint
    assert diagnosis.nbytes == dataset.manifest.nbytes.sum()


@pytest.mark.parametrize("name", SCENARIOS)
def test_each_fault_has_a_name(tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    root = sound_dataset(tmp_path / "data")
    scenario.spoil(root)
    assert found(root) == {kind: count for kind, count in scenario.found.items() if count}
    errors = any(KINDS[kind].severity == "error" for kind in scenario.found)
    assert diagnose(root).sound == (not errors)


def test_every_kind_has_a_scenario() -> None:
    shown = {kind for scenario in SCENARIOS.values() for kind in scenario.found}
    assert set(KINDS) == shown


def test_the_checks_are_the_same_for_every_number_of_threads(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path / "data")
    SCENARIOS["a shard cut short"].spoil(root)
    one, many = (diagnose(root, threads=threads) for threads in (1, 5))
    assert one.findings.listed() == many.findings.listed()
    assert one.changes.lines() == many.changes.lines()


def test_progress_counts_shards(tmp_path: Path) -> None:
    totals: list[int] = []
    diagnose(sound_dataset(tmp_path), on_shard=totals.append)
    assert totals == [3, 3, 3]


def test_of_many_findings_a_few_are_kept(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path)
    (root / MANIFEST_NAME).unlink()
    (finding,) = [finding for finding in diagnose(root).findings.listed() if finding.kind == "stray"]
    assert finding.count == SAMPLES
    assert len(finding.examples) == EXAMPLES


def test_mds_shards_are_checked_too(tmp_path: Path) -> None:
    root = tmp_path / "mds"
    convert(sound_dataset(tmp_path / "tar"), root, "mds")
    assert found(root) == {}
    flip(root, 1)
    assert found(root) == {"checksum": 1}
    edit_manifest(root, fps=one_of(1.5, 7))
    assert found(root) == {"checksum": 1, "rate": 1}


@pytest.mark.parametrize("key", ["../evil", "/evil", "a\0b"])
def test_a_bad_name_in_an_mds_shard_is_a_finding(tmp_path: Path, key: str) -> None:
    mosaic.require()
    root = tmp_path / "mds"
    convert(sound_dataset(tmp_path / "tar"), root, "mds")
    (first, *_) = read_mds(Folder(root), "shards/shard.00000.mds")
    strange = {"key": key, "json": first.meta.decode(), "safetensors": first.payload}
    written = mosaic.write(tmp_path / "more", COLUMNS, [strange, strange | {"key": "plain"}])
    shutil.copy(written / "shard.00000.mds", root / "shards/zz.mds")
    assert found(root) == {"name": 1, "stray": 1, "copy": 1}
    repair(diagnose(root))
    assert diagnose(root).sound
    assert "plain" in open_dataset(root).manifest.keys


class _Failing(Folder):
    """A store that gives all objects but one."""

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        if path.endswith("000001.tar"):
            raise InputError(f"s3://bucket/{path}: status code: 500")
        with super().local(path) as file:
            yield file

    def fill(self, path: str, offset: int, view: memoryview) -> int:
        if path.endswith("000001.tar"):
            raise InputError(f"s3://bucket/{path}: status code: 500")
        return super().fill(path, offset, view)


def test_an_object_that_fails_for_good_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = sound_dataset(tmp_path)
    flip(root, 0)
    monkeypatch.setattr("shards.doctor.diagnose.open_storage", lambda root: _Failing(Path(root)))
    findings = diagnose(root).findings
    assert {finding.kind: finding.count for finding in findings.listed()} == {"checksum": 1, "unreadable": 5}
    whole, *rows = findings.of("unreadable").examples
    assert (whole.shard, whole.key) == ("shards/000001.tar", "")
    assert {example.detail for example in (whole, *rows)} == {
        "s3://bucket/shards/000001.tar: status code: 500"
    }


@pytest.mark.parametrize(
    ("target", "reference", "fits"),
    [
        ((1, 4, 4), (1, 4, 4), True),
        ((9, 4, 6), (9, 2, 3), True),
        ((9, 4, 6), (5, 4, 6), True),
        ((9, 4, 6), (1, 4, 6), True),
        ((9, 4, 6), (4, 4, 6), False),
        ((9, 4, 6), (10, 4, 6), False),
        ((9, 4, 6), (9, 3, 6), False),
        ((9, 4, 6), (9, 8, 6), False),
        ((1, 4, 4), (2, 4, 4), False),
    ],
)
def test_the_rule_of_references_is_that_of_training(
    target: tuple[int, int, int], reference: tuple[int, int, int], fits: bool
) -> None:
    assert fitting(np.array([target], np.int32), np.array([reference], np.int32)).tolist() == [fits]
    if fits:
        reference_scale(Grid(*target), Grid(*reference), "k")
    else:
        with pytest.raises(InputError, match="do not divide"):
            reference_scale(Grid(*target), Grid(*reference), "k")


@given(grids, grids)
def test_any_two_grids_are_judged_as_training_judges_them(
    target: tuple[int, int, int], reference: tuple[int, int, int]
) -> None:
    try:
        reference_scale(Grid(*target), Grid(*reference), "k")
        accepted = True
    except InputError:
        accepted = False
    assert fitting(np.array([target], np.int32), np.array([reference], np.int32)).tolist() == [accepted]


def command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["ltx-shards", "doctor", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_the_command_says_sound_or_not_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sound_dataset(tmp_path / "data")
    assert command(monkeypatch, root) == 0
    printed = capsys.readouterr().out
    assert "\nsound\n" in printed
    assert "mix similar %" in printed
    flip(root, 1)
    assert command(monkeypatch, root) == 1
    printed = capsys.readouterr().out
    assert "clips/01 (shards/000000.tar)" in printed
    assert (
        f"\nnot sound: `ltx-shards doctor {root} --repair` keeps 11 samples; "
        f"if shards were written again, `ltx-shards index {root}` takes them as they are\n"
    ) in printed
    assert command(monkeypatch, root, "--repair") == 0
    printed = capsys.readouterr().out
    assert "dropped 'clips/01' of shards/000000.tar: the bytes are not" in printed
    assert "\nsound after the repair\n" in printed
    assert command(monkeypatch, root) == 0
    assert "1 sample left out by an earlier repair" in capsys.readouterr().out
    (root / "dataset.json").unlink()
    assert command(monkeypatch, root) == 2
    assert capsys.readouterr().err.startswith(f"error: {root}/dataset.json is missing")


@pytest.mark.parametrize("threads", [-1, 0])
def test_no_threads_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], threads: int
) -> None:
    assert command(monkeypatch, sound_dataset(tmp_path), "--threads", threads) == 2
    assert capsys.readouterr().err == (
        f"error: --threads {threads}: the number of shards read at once is at least 1\n"
    )


def test_machines_get_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sound_dataset(tmp_path / "data")
    flip(root, 1)
    assert command(monkeypatch, root, "--json") == 1
    values = json.loads(capsys.readouterr().out)
    assert (values["sound"], values["samples"], values["fit_samples"], values["repair"]) == (
        False,
        12,
        11,
        None,
    )
    (finding,) = values["findings"]
    assert (finding["kind"], finding["severity"], finding["count"]) == ("checksum", "error", 1)
    assert finding["examples"][0]["key"] == "clips/01"
    assert [row["ranks"] for row in values["efficiency"]] == [8, 8, 64, 512]
    assert command(monkeypatch, root, "--json", "--repair") == 0
    values = json.loads(capsys.readouterr().out)
    assert values["sound"]
    assert values["repair"][-1] == "wrote manifest.parquet: 11 samples, 12 before"


def test_the_picture_is_drawn_where_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sound_dataset(tmp_path / "data")
    command(monkeypatch, root)
    first = (root / "doctor.png").read_bytes()
    assert first.startswith(b"\x89PNG")
    command(monkeypatch, root, "--picture", tmp_path / "p.png")
    assert (tmp_path / "p.png").read_bytes() == first
    assert f"picture of the lengths: {tmp_path}/p.png" in capsys.readouterr().out


def test_a_dataset_in_an_object_store_is_checked_and_mended(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path / "data")
    flip(root, 1)
    with s3_server() as endpoint, pytest.MonkeyPatch.context() as patch:
        for name, value in s3_environment(endpoint).items():
            patch.setenv(name, value)
        url = f"{make_bucket(endpoint, 'doctor')}/data"
        storage = open_storage(url)
        for path in root.rglob("*"):
            if path.is_file():
                storage.write(path.relative_to(root).as_posix(), path.read_bytes())
        assert [finding.kind for finding in diagnose(url).findings.listed()] == ["checksum"]
        repair(diagnose(url))
        after = diagnose(url)
        assert after.sound
        assert (len(after.mended), after.passed_over) == (11, 1)
        index(url)
        assert len(open_dataset(url).manifest) == 11


def test_a_sound_dataset_with_warnings_counts_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path, 6, references=[None, GRIDS[1]], grids=[GRIDS[1]])
    assert command(monkeypatch, tmp_path) == 0
    assert "\nsound, 1 warning\n" in capsys.readouterr().out


@pytest.mark.parametrize("lose", [lambda path: path.unlink(), lambda path: path.write_bytes(b"")])
def test_a_shard_that_encode_made_can_be_made_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    lose: Callable[[Path], object],
) -> None:
    root = sound_dataset(tmp_path)
    lose(root / "shards/000001.tar")
    for encoded in (False, True):
        if encoded:
            (root / ".encode").mkdir()
            (root / ".encode/job.json").write_text("{}")
        assert command(monkeypatch, root) == 1
        advice = "samples, and the same `ltx-shards encode` again makes the missing shards anew\n"
        assert (advice in capsys.readouterr().out) == encoded


def test_a_dataset_at_a_web_server_is_checked_by_its_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = sound_dataset(tmp_path)
    with without_ranges(root) as url:
        assert command(monkeypatch, url) == 0
        said = "a web server lists no files, so shards that the manifest does not name are not looked at"
        assert said in capsys.readouterr().out
        flip(root, 1)
        assert command(monkeypatch, url) == 1
        assert "checksum" in capsys.readouterr().out
        assert command(monkeypatch, url, "--repair") == 2
        assert f"error: {url}: a web server is only read: write to a folder" in capsys.readouterr().err
        assert command(monkeypatch, f"{url}/wrong") == 2
        assert capsys.readouterr().err == (
            f"error: {url}/wrong/dataset.json is missing: no dataset is there, as manifest.parquet is missing too: "
            "check the URL\n"
        )
