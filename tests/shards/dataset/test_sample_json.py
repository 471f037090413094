"""The captions of a few samples are found in every kind of shard, and without reading much of a remote one."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset.convert import convert
from shards.dataset.index import index
from shards.dataset.opened import Dataset, open_dataset
from shards.dataset.sample_json import read_json
from shards.errors import ShardError
from shards.storage import Folder
from tests.support import mosaic
from tests.support.datasets import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("dataset"), 12, shard_bytes=8 << 10)


@settings(deadline=None)
@given(rows=st.lists(st.integers(0, 11), max_size=12))
def test_each_row_has_its_own(dataset: Dataset, rows: list[int]) -> None:
    assert [values["caption"] for values in read_json(dataset, rows)] == [f"caption {row}" for row in rows]


def test_little_is_read_of_a_shard(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Folder, "local", lambda *_: pytest.fail("the whole shard was read"))
    assert read_json(dataset, [7])[0]["source"] == "clips/sample_00007.mp4"


def test_long_names_take_the_long_way(tmp_path: Path) -> None:
    keys = ["x" * 150 + f"/{'y' * 120}{number}" for number in range(3)]
    dataset = write_dataset(tmp_path, 3, keys=keys)
    assert [values["caption"] for values in read_json(dataset, [2, 0])] == ["caption 2", "caption 0"]


def test_members_may_lie_far_apart(dataset: Dataset, tmp_path: Path) -> None:
    """A tar of somebody else: all tensors first, then all JSON."""
    (tmp_path / "shards").mkdir()
    source = Path(dataset.root) / dataset.manifest.shards[0]
    with tarfile.open(source) as old, tarfile.open(tmp_path / "shards/x.tar", "w") as new:
        for member in sorted(old.getmembers(), key=lambda member: member.name.endswith("json")):
            data = old.extractfile(member)
            assert data is not None
            new.addfile(member, io.BytesIO(data.read()))
    index(tmp_path, dataset.info)
    foreign = open_dataset(tmp_path)
    rows = range(len(foreign.manifest))
    assert [values["caption"] for values in read_json(foreign, rows)] == [f"caption {row}" for row in rows]


def test_mds_shards_have_them_too(dataset: Dataset, tmp_path: Path) -> None:
    mosaic.require()
    convert(dataset.root, tmp_path / "mds", "mds")
    converted = open_dataset(tmp_path / "mds")
    keys = converted.manifest.keys.tolist()
    found = [values["caption"] for values in read_json(converted, range(len(keys)))]
    assert found == [f"caption {int(key[-5:])}" for key in keys]


def test_remote_ones_too(bucket: str) -> None:
    dataset = write_dataset(f"{bucket}/data", 6)
    assert read_json(open_dataset(dataset.root), [5])[0]["caption"] == "caption 5"


def test_a_shard_that_is_not_there_is_told(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 2)
    (tmp_path / "shards/000000.tar").unlink()
    with pytest.raises(
        ShardError, match=r"shards/000000\.tar: sample 'clips/sample_00001': reading the file"
    ):
        read_json(dataset, [1])


def test_what_is_no_json_is_told(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 2)
    path = tmp_path / "shards/000000.tar"
    data = path.read_bytes()
    good = b'"caption": "caption 1"'
    path.write_bytes(data.replace(good, b"X" * len(good)))
    with pytest.raises(ShardError, match="expected a readable json"):
        read_json(dataset, [1])
