from __future__ import annotations

import hashlib
import io
import json
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.cli import main
from shards.dataset.convert import convert
from shards.dataset.index import index
from shards.dataset.manifest import MANIFEST_NAME
from shards.dataset.opened import Dataset, open_dataset
from shards.dataset.output import UNFINISHED_NAME
from shards.errors import InputError, ShardError
from shards.formats.mds import COLUMNS
from shards.formats.shard import read_samples
from shards.formats.tar import read_shard
from shards.reader import Reader
from shards.storage import Folder
from tests.support import mosaic
from tests.support.command import run
from tests.support.damage import members, write_tar
from tests.support.datasets import GRIDS, write_dataset

sizes = st.integers(1, 4)
grids = st.tuples(sizes, sizes, sizes)
texts = st.text(st.characters(codec="utf-8", exclude_characters="./\\\0\n"), min_size=1, max_size=40)


@pytest.fixture(autouse=True)
def _library() -> None:
    mosaic.require()


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@settings(max_examples=12, deadline=None)
@given(
    keys=st.lists(texts, min_size=1, max_size=12, unique=True),
    grid_list=st.lists(grids, min_size=1, max_size=4),
    references=st.lists(st.none() | grids, min_size=1, max_size=3),
    fps=st.lists(st.floats(0.1, 240), min_size=1, max_size=3),
    shard_bytes=st.integers(1, 20_000),
    dtype=st.sampled_from([torch.bfloat16, torch.float32]),
)
def test_there_and_back_gives_the_same_dataset_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory,
    keys: list[str],
    grid_list: list,
    references: list,
    fps: list[float],
    shard_bytes: int,
    dtype: torch.dtype,
) -> None:
    root = tmp_path_factory.mktemp("convert")
    dataset = write_dataset(
        root / "tar",
        len(keys),
        keys=keys,
        grids=grid_list,
        references=references,
        fps=fps,
        shard_bytes=shard_bytes,
        dtype=dtype,
    )
    there = convert(root / "tar", root / "mds", "mds")
    back = convert(root / "mds", root / "back", "tar")
    assert files(root / "back") == files(root / "tar")
    assert there.fingerprint == back.fingerprint == dataset.manifest.fingerprint
    assert (there.samples, there.shards) == (len(keys), len(dataset.manifest.shards))


@pytest.fixture
def paired(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "tar", 12, references=[None, *GRIDS], shard_bytes=8 << 10)


def test_both_formats_give_the_reader_the_same_samples(tmp_path: Path, paired: Dataset) -> None:
    convert(paired.root, tmp_path / "mds", "mds")
    with Reader(paired) as tars, Reader(open_dataset(tmp_path / "mds")) as shards:
        for a, b in zip(tars.read(range(12)), shards.read(range(12)), strict=True):
            assert (a.key, a.id, a.fps, len(a.references)) == (b.key, b.id, b.fps, len(b.references))
            parts = (a.latents, a.prompt_embeds, *a.references), (b.latents, b.prompt_embeds, *b.references)
            for x, y in zip(*parts, strict=True):
                assert torch.equal(x, y)


def test_the_stock_streaming_dataset_reads_it_sample_by_sample(tmp_path: Path, paired: Dataset) -> None:
    convert(paired.root, tmp_path / "mds", "mds")
    stored = [one for name in paired.manifest.shards for one in read_shard(Folder(paired.root), name)]
    assert mosaic.read(tmp_path / "mds" / "shards", tmp_path) == [
        {"key": one.key, "json": json.loads(one.meta), "tensors": hashlib.sha256(one.payload).hexdigest()}
        for one in stored
    ]


def test_the_stock_webdataset_pipeline_reads_the_tars_sample_by_sample(
    tmp_path: Path, paired: Dataset
) -> None:
    import webdataset
    from safetensors.torch import load

    convert(paired.root, tmp_path / "mds", "mds")
    convert(tmp_path / "mds", tmp_path / "back", "tar")
    back = open_dataset(tmp_path / "back")
    urls = [str(back.root / name) for name in back.manifest.shards]
    pipeline = webdataset.WebDataset(urls, shardshuffle=False).decode(
        webdataset.handle_extension("safetensors", load)
    )
    found = list(pipeline.to_tuple("__key__", "json", "safetensors"))
    with Reader(paired) as reader:
        for sample, (key, meta, tensors) in zip(reader.read(range(12)), found, strict=True):
            assert (key, meta["fps"]) == (sample.key, sample.fps)
            assert torch.equal(tensors["latents"], sample.latents)
            assert torch.equal(tensors["prompt_embeds"], sample.prompt_embeds)
            assert ("reference_latents" in tensors) == bool(sample.references)


def test_only_samples_of_the_manifest_are_taken(tmp_path: Path, paired: Dataset) -> None:
    """As after a repair, which takes rows out and leaves the bytes."""
    from shards.dataset.manifest import write_manifest
    from shards.dataset.selection import select

    write_manifest(paired.root, select(paired.manifest, np.array([0, 3, 7])))
    assert convert(paired.root, tmp_path / "mds", "mds").samples == 3
    assert open_dataset(tmp_path / "mds").manifest.keys.tolist() == paired.manifest.keys[[0, 3, 7]].tolist()


def test_tars_of_others_get_the_rate_that_only_their_manifest_knew(tmp_path: Path, paired: Dataset) -> None:
    source = tmp_path / "foreign"
    (source / "shards").mkdir(parents=True)
    with tarfile.open(paired.root / paired.manifest.shards[0]) as tar:
        bodies = {info.name: tar.extractfile(info) for info in tar}
        with tarfile.open(source / "shards" / "theirs.tar", "w") as other:
            for name, file in bodies.items():
                assert file is not None
                data = b"{}" if name.endswith("json") else file.read()
                info = tarfile.TarInfo(name)
                info.size = len(data)
                other.addfile(info, io.BytesIO(data))
    index(source, paired.info, fps=12.0)
    convert(source, tmp_path / "mds", "mds")
    assert set(index(tmp_path / "mds").fps.tolist()) == {12.0}


JSON_OF_OTHERS = [
    b'{ "fps" : 24.0,\n  "caption": "\\u00e4 \\ud800", "fps": 25 }\n',
    '\ufeff{"fps": 1e1, "caption": "ä"}'.encode(),
    b'{"fps": 12, "score": NaN, "z": 1, "a": 1.50}',
]


def foreign(root: Path, paired: Dataset) -> None:
    """A tar of three samples with JSON as others write it, and other files."""
    bodies = [
        body
        for name, body in members(paired.root / paired.manifest.shards[0])
        if name.endswith("safetensors")
    ]
    found = [
        (f"{number}.{kind}", data)
        for number, meta in enumerate(JSON_OF_OTHERS)
        for kind, data in (
            ("mp4", b"video"),
            ("json", meta),
            ("safetensors", bodies[0]),
            ("other.json", b"{}"),
        )
    ]
    write_tar(root / "shards/theirs.tar", [*found, ("README", b"hello"), ("a.txt", b"a")])
    index(root, paired.info)


def test_the_json_of_others_keeps_its_bytes_and_other_files_are_counted(
    tmp_path: Path, paired: Dataset
) -> None:
    foreign(tmp_path / "theirs", paired)
    there = convert(tmp_path / "theirs", tmp_path / "mds", "mds")
    back = convert(tmp_path / "mds", tmp_path / "back", "tar")
    assert there.left_behind == {"mp4": 3, "other.json": 3, "": 1, "txt": 1}
    assert back.left_behind == {}
    for root, name in (
        (tmp_path / "mds", "shards/shard.00000.mds"),
        (tmp_path / "back", "shards/000000.tar"),
    ):
        assert [stored.meta for stored in read_samples(Folder(root), name)] == JSON_OF_OTHERS
    assert there.fingerprint == back.fingerprint


def test_columns_of_others_are_counted(tmp_path: Path, paired: Dataset) -> None:
    body = members(paired.root / paired.manifest.shards[0])[1][1]
    samples = [{"key": key, "json": '{"fps": 1}', "safetensors": body, "score": 3} for key in "ab"]
    mosaic.write(tmp_path / "mds/shards", COLUMNS | {"score": "int"}, samples)
    index(tmp_path / "mds", paired.info)
    assert convert(tmp_path / "mds", tmp_path / "tar2", "tar").left_behind == {"score": 2}


def test_the_command_says_what_it_left_behind(
    tmp_path: Path, paired: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    foreign(tmp_path / "theirs", paired)
    out = tmp_path / "mds"
    monkeypatch.setattr(
        sys, "argv", ["ltx-shards", "convert", str(tmp_path / "theirs"), "--to", "mds", "--out", str(out)]
    )
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    assert capsys.readouterr().out.splitlines()[1:] == [
        "left behind, as only json and safetensors are taken: 3 mp4, 3 other.json, 1 without an extension, 1 txt"
    ]


def test_damage_is_not_carried_over(tmp_path: Path, paired: Dataset) -> None:
    path = paired.root / paired.manifest.shards[1]
    data = bytearray(path.read_bytes())
    row = int(paired.manifest.shard.searchsorted(1))
    data[int(paired.manifest.offset[row] + paired.manifest.nbytes[row]) - 1] ^= 1
    path.write_bytes(data)
    with pytest.raises(ShardError, match="xxh3_64 checksum") as error:
        convert(paired.root, tmp_path / "mds", "mds")
    assert error.value.key == paired.manifest.keys[row]
    assert not (tmp_path / "mds" / MANIFEST_NAME).exists()


def test_a_key_that_a_tar_cannot_hold_is_named(tmp_path: Path, paired: Dataset) -> None:
    from shards.formats.sample import payload

    body = payload({"latents": torch.zeros(4, 1, 2, 3), "prompt_embeds": torch.zeros(2, 16)})
    mosaic.write(
        tmp_path / "mds" / "shards", COLUMNS, [{"key": "a.v1", "json": '{"fps": 1}', "safetensors": body}]
    )
    index(tmp_path / "mds", paired.info)
    with pytest.raises(InputError, match=r"key 'a.v1' contains '.'"):
        convert(tmp_path / "mds", tmp_path / "tar2", "tar")


def test_formats_that_make_no_sense_are_refused(tmp_path: Path, paired: Dataset) -> None:
    with pytest.raises(InputError, match="--to 'zip': give tar or mds"):
        convert(paired.root, tmp_path / "out", "zip")
    with pytest.raises(InputError, match="its shards are tar already"):
        convert(paired.root, tmp_path / "out", "tar")
    with pytest.raises(InputError, match="already holds a dataset"):
        convert(paired.root, paired.root, "mds")
    assert not (tmp_path / "out").exists()


KILLED = """
import os, sys
from pathlib import Path
from shards.cli import main
from shards.dataset.convert import convert
seen = []
def die(total):
    seen.append(total)
    if len(seen) == 9:
        os.kill(os.getpid(), 9)
convert(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], on_sample=die)
"""


def test_a_conversion_that_was_killed_is_done_again(tmp_path: Path, paired: Dataset) -> None:
    out = tmp_path / "mds"
    command = [sys.executable, "-c", KILLED, str(paired.root), str(out), "mds"]
    assert subprocess.run(command, timeout=120, check=False).returncode == -9
    assert (out / UNFINISHED_NAME).exists()
    with pytest.raises(InputError):
        open_dataset(out)
    convert(paired.root, out, "mds")
    convert(out, tmp_path / "back", "tar")
    assert files(tmp_path / "back") == files(paired.root)
    assert sorted(files(out)) == sorted(
        ["dataset.json", "manifest.parquet", "shards/index.json"]
        + [f"shards/shard.{number:05d}.mds" for number in range(len(paired.manifest.shards))]
    )


def test_a_conversion_that_is_complete_is_left_as_it_is(
    tmp_path: Path, paired: Dataset, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "mds"
    convert(paired.root, out, "mds")
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert run(monkeypatch, "convert", paired.root, "--to", "mds", "--out", out) == 0
    assert f"{out}: is complete, nothing was left to do: 12 samples in" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    (out / "shards/shard.00000.mds").unlink()
    assert run(monkeypatch, "convert", paired.root, "--to", "mds", "--out", out) == 2
    assert f"{out} already holds a dataset: give another folder" in capsys.readouterr().err


def test_the_command(tmp_path: Path, paired: Dataset) -> None:
    command = [
        sys.executable,
        "-m",
        "shards",
        "convert",
        str(paired.root),
        "--to",
        "mds",
        "--out",
        str(tmp_path / "m"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert f"12 samples in {len(paired.manifest.shards)} shards" in done.stdout
    assert paired.manifest.fingerprint in done.stdout


def test_datasets_in_an_object_store_are_converted_there_and_back(
    tmp_path: Path, paired: Dataset, bucket: str
) -> None:
    convert(paired.root, f"{bucket}/mds", "mds")
    with Reader(open_dataset(f"{bucket}/mds")) as reader:
        assert [sample.key for sample in reader.read(range(12))] == paired.manifest.keys.tolist()
    convert(f"{bucket}/mds", f"{bucket}/tar", "tar")
    convert(f"{bucket}/tar", tmp_path / "mds", "mds")
    convert(tmp_path / "mds", tmp_path / "back", "tar")
    assert files(tmp_path / "back") == files(Path(paired.root))
