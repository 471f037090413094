from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load

from shards.errors import InputError, ShardError
from shards.formats.meta import sample_json
from shards.formats.row import check_key
from shards.formats.sample import payload
from shards.formats.tar import ShardWriter, scan_shard, write_shard
from shards.geometry import Bucket
from shards.storage import Folder
from tests.support.datasets import write_dataset

META = {"format": 1, "fps": 24.0, "caption": "a"}


def data(value: float = 1.0, text: int = 3) -> bytes:
    return payload(
        {
            "latents": torch.full((2, 1, 2, 3), float(value)),
            "prompt_embeds": torch.full((text, 5), float(value)),
        }
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_stock_webdataset_reads_our_shards(tmp_path: Path) -> None:
    import webdataset

    dataset = write_dataset(tmp_path, 20, references=[None, (1, 2, 2)], shard_bytes=8 << 10)
    assert len(dataset.manifest.shards) > 1
    urls = [str(tmp_path / name) for name in dataset.manifest.shards]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == dataset.manifest.keys.tolist()
    for row, sample in enumerate(found):
        tensors, meta = load(sample["safetensors"]), json.loads(sample["json"])
        assert list(tensors["latents"].shape[1:]) == dataset.manifest.grid[row].tolist()
        assert ("reference_latents" in tensors) == bool(row % 2)
        assert meta["caption"] == f"caption {row}"
        assert meta["fps"] == dataset.manifest.fps[row]


def test_the_json_member_says_where_a_sample_came_from() -> None:
    meta = sample_json(
        caption="a cat",
        source="x.mp4",
        fps=25,
        width=1920,
        height=1080,
        frames=100,
        bucket=Bucket(768, 448, 89),
    )
    assert json.loads(json.dumps(meta)) == {
        "format": 1,
        "caption": "a cat",
        "source": "x.mp4",
        "fps": 25.0,
        "width": 1920,
        "height": 1080,
        "frames": 100,
        "bucket": "768x448x89",
    }


@pytest.mark.parametrize(
    "key", ["a.v1", ".a", "a.", "dir.x/a", "", "/a", "a/", "a//b", "a\nb", "a\\b", "a\udcff"]
)
def test_keys_other_readers_would_cut_are_refused(tmp_path: Path, key: str) -> None:
    with pytest.raises(InputError) as error:
        write_shard(Folder(tmp_path), "0.tar", [(key, META, data())])
    assert repr(key) in str(error.value)
    assert names(tmp_path) == []


@pytest.mark.parametrize("key", ["a", "dir/a", "clips/ä b-c_1", "x" * 90, "y" * 300, "deep/" * 60 + "z"])
def test_other_keys_survive_in_both_readers(tmp_path: Path, key: str) -> None:
    import webdataset

    check_key(key)
    path = tmp_path / "0.tar"
    written = write_shard(Folder(path.parent), path.name, [(key, META, data(1)), ("next", META, data(2))])
    assert scan_shard(Folder(path.parent), path.name) == written
    assert [row.key for row in written] == [key, "next"]
    assert [s["__key__"] for s in webdataset.WebDataset(str(path), shardshuffle=False)] == [key, "next"]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25, deadline=None)
@given(
    keys=st.lists(
        st.text("abü_/", min_size=1, max_size=120).filter(lambda k: "//" not in f"/{k}/"), unique=True
    ),
    limit=st.integers(1, 8 << 10),
)
def test_what_the_writer_notes_is_what_a_scan_finds(
    tmp_path_factory: pytest.TempPathFactory, keys: list[str], limit: int
) -> None:
    root = tmp_path_factory.mktemp("shards")
    with ShardWriter(root, max_bytes=limit) as writer:
        for number, key in enumerate(keys):
            writer.add(key, META | {"fps": 1.0 + number}, data(number, text=number))
    paths = sorted((root / "shards").glob("*.tar"))
    assert [
        row for path in paths for row in scan_shard(Folder(path.parents[1]), f"shards/{path.name}")
    ] == writer.rows
    for row in writer.rows:
        with open(root / row.shard, "rb") as file:
            file.seek(row.offset)
            assert load(file.read(row.nbytes))["latents"].numel() == 12


def test_equal_samples_give_equal_bytes(tmp_path: Path) -> None:
    samples = [("a", META, data(1)), ("b" * 200, META, data(2))]
    write_shard(Folder(tmp_path), "0.tar", samples)
    write_shard(Folder(tmp_path), "1.tar", samples)
    assert (tmp_path / "0.tar").read_bytes() == (tmp_path / "1.tar").read_bytes()


def test_the_writer_starts_a_new_shard_at_the_limit(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, max_bytes=4096) as writer:
        for number in range(9):
            writer.add(f"k{number}", META, data())
    counts = np.unique([row.shard for row in writer.rows], return_counts=True)[1].tolist()
    assert counts == [2, 2, 2, 2, 1]
    assert names(tmp_path) == [f"{n:06d}.tar" for n in range(5)]


def test_a_failing_writer_leaves_finished_shards_only(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, max_bytes=4096)

    def fail_in_the_second_shard() -> None:
        with writer:
            for number in range(3):
                writer.add(f"k{number}", META, data())
            raise RuntimeError("disk")

    with pytest.raises(RuntimeError, match="disk"):
        fail_in_the_second_shard()
    assert names(tmp_path) == ["000000.tar"]
    assert [row.key for row in writer.rows] == ["k0", "k1"]
    assert writer.rows == scan_shard(Folder(tmp_path), "shards/000000.tar")


def test_a_failing_sample_source_leaves_no_file(tmp_path: Path) -> None:
    def samples() -> Any:
        yield "a", META, data()
        raise RuntimeError("decoder")

    with pytest.raises(RuntimeError, match="decoder"):
        write_shard(Folder(tmp_path), "0.tar", samples())
    assert names(tmp_path) == []


def test_a_shard_has_its_final_name_only_when_complete(tmp_path: Path) -> None:
    with ShardWriter(tmp_path, max_bytes=4096) as writer:
        writer.add("a", META, data())
        assert not list((tmp_path / "shards").glob("*.tar"))
        writer.add("b", META, data())
        assert names(tmp_path) == ["000000.tar"]


def test_a_repeated_key_is_refused_and_the_writer_goes_on(tmp_path: Path) -> None:
    with ShardWriter(tmp_path) as writer:
        writer.add("a", META, data())
        with pytest.raises(InputError, match="'a' was added twice"):
            writer.add("a", META, data(2))
        writer.add("b", META, data())
    assert [row.key for row in scan_shard(Folder(tmp_path), "shards/000000.tar")] == ["a", "b"]


def test_existing_shards_are_not_overwritten(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2)
    before = (tmp_path / "shards/000000.tar").read_bytes()
    with pytest.raises(InputError, match="exists already"), ShardWriter(tmp_path) as writer:
        writer.add("new", META, data())
    assert (tmp_path / "shards/000000.tar").read_bytes() == before


@pytest.mark.parametrize(
    ("meta", "body", "message"),
    [
        ({"caption": "a"}, data(), "positive fps, found None"),
        ({"fps": 0}, data(), "positive fps, found 0"),
        ({"fps": float("nan")}, data(), "positive fps"),
        ({"fps": True}, data(), "positive fps"),
        ({"fps": 24, "format": 2}, data(), "format 2"),
        (META | {"fps": 10**400}, data(), "positive fps"),
        (META | {"caption": "a \ud800"}, data(), "surrogates not allowed"),
        (META, b"", "at least 8 bytes"),
        (META, data()[:-1], "does not fit"),
    ],
)
def test_samples_that_cannot_be_read_back_are_not_written(
    tmp_path: Path, meta: dict, body: bytes, message: str
) -> None:
    with pytest.raises(InputError, match=f"'k' cannot be written.*{message}"):
        write_shard(Folder(tmp_path), "0.tar", [("k", meta, body)])
    assert names(tmp_path) == []


def three(path: Path) -> bytes:
    write_shard(
        Folder(path.parent), path.name, [(key, META, data(number)) for number, key in enumerate("abc")]
    )
    return path.read_bytes()


@pytest.mark.parametrize("keep", [0.0, 0.1, 0.34, 0.5, 0.67, 0.9])
def test_a_tar_cut_short_is_refused_with_its_name(tmp_path: Path, keep: float) -> None:
    path = tmp_path / "shards" / "0.tar"
    path.parent.mkdir()
    whole = three(path)
    used = whole.rstrip(b"\0")
    path.write_bytes(whole[: int(len(used) * keep)])
    with pytest.raises(ShardError) as error:
        scan_shard(Folder(tmp_path), "shards/0.tar")
    assert str(error.value).startswith("shards/0.tar:")


def test_a_tar_cut_between_two_samples_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    whole = three(path)
    last = scan_shard(Folder(path.parent), path.name)[1]
    end = last.offset + -(-last.nbytes // 512) * 512
    path.write_bytes(whole[:end])
    with pytest.raises(ShardError, match="end of the tar") as error:
        scan_shard(Folder(path.parent), path.name)
    assert error.value.key == "b"


@pytest.mark.parametrize("header", range(6))
def test_a_damaged_member_header_is_not_taken_for_the_end(tmp_path: Path, header: int) -> None:
    path = tmp_path / "0.tar"
    whole = bytearray(three(path))
    with tarfile.open(path) as tar:
        whole[tar.getmembers()[header].offset + 150] ^= 1  # the header's own checksum
    path.write_bytes(whole)
    with pytest.raises(ShardError, match="tar"):
        scan_shard(Folder(path.parent), path.name)


def foreign(path: Path, members: list[tuple[str, bytes]]) -> Path:
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        folder = tarfile.TarInfo("some")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, body in members:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(body), 1234567890
            tar.addfile(info, io.BytesIO(body))
    return path


def test_tars_of_other_tools_are_read(tmp_path: Path) -> None:
    meta = json.dumps({"fps": 12}).encode()
    path = foreign(
        tmp_path / "f.tar",
        [
            ("some/a.safetensors", data(1)),
            ("some/a.json", meta),
            ("some/a.mp4", b"video"),
            ("some/b.json", meta),
            ("some/b.safetensors", data(2, text=7)),
        ],
    )
    rows = scan_shard(Folder(path.parent), path.name)
    assert [(row.key, row.text_tokens, row.fps) for row in rows] == [("some/a", 3, 12.0), ("some/b", 7, 12.0)]
    assert os.stat(path).st_size > rows[1].offset
    assert rows[1].offset % 512 == 0


@pytest.mark.parametrize(
    ("members", "key", "message"),
    [
        ([("a.json", b"{}")], "a", "member a.safetensors"),
        ([("a.safetensors", data())], "a", "member a.json"),
        ([("a.safetensors", data()), ("a.json", b"{")], "a", "readable sample"),
        ([("a.safetensors", data()), ("a.json", b"[1]")], "a", "not a table"),
        ([("a.safetensors", b"123456789"), ("a.json", b'{"fps": 1}')], "a", "header claims"),
    ],
)
def test_incomplete_samples_are_named(
    tmp_path: Path, members: list[tuple[str, bytes]], key: str, message: str
) -> None:
    with pytest.raises(ShardError, match=message) as error:
        scan_shard(Folder(tmp_path), foreign(tmp_path / "f.tar", members).name)
    assert (error.value.shard, error.value.key) == ("f.tar", key)
