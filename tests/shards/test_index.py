from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset import open_dataset
from shards.errors import InputError, ShardError
from shards.index import index
from shards.manifest import MANIFEST_NAME, Manifest
from tests.support.datasets import write_dataset

sizes = st.integers(1, 4)
grids = st.tuples(sizes, sizes, sizes)


@settings(max_examples=15, deadline=None)
@given(
    samples=st.integers(1, 25),
    grid_list=st.lists(grids, min_size=1, max_size=4),
    references=st.lists(st.none() | grids, min_size=1, max_size=3),
    fps=st.lists(st.floats(0.1, 240), min_size=1, max_size=3),
    shard_bytes=st.integers(1, 20_000),
)
def test_the_tars_alone_give_the_same_manifest_to_the_byte(
    tmp_path_factory: pytest.TempPathFactory,
    samples: int,
    grid_list: list,
    references: list,
    fps: list[float],
    shard_bytes: int,
) -> None:
    root = tmp_path_factory.mktemp("dataset")
    write_dataset(root, samples, grids=grid_list, references=references, fps=fps, shard_bytes=shard_bytes)
    path = root / MANIFEST_NAME
    written = path.read_bytes()
    path.unlink()
    manifest = index(root, threads=2)
    assert path.read_bytes() == written
    assert manifest.fingerprint == open_dataset(root).manifest.fingerprint


def test_every_shard_is_reported(tmp_path: Path) -> None:
    write_dataset(tmp_path, 20, shard_bytes=4096)
    seen: list[tuple[str, int]] = []
    index(tmp_path, on_shard=lambda shard, total: seen.append((shard, total)))
    count = len(list((tmp_path / "shards").iterdir()))
    assert len(set(seen)) == count
    assert {total for _, total in seen} == {count}


def test_shards_moved_or_removed_are_followed(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 20, shard_bytes=4096)
    (tmp_path / "shards/000001.tar").rename(tmp_path / "shards/extra.tar")
    moved = index(tmp_path)
    assert moved.shards[-1] == "shards/extra.tar"
    assert moved.fingerprint == dataset.manifest.fingerprint
    (tmp_path / "shards/extra.tar").unlink()
    assert 0 < len(index(tmp_path)) < 20


def repack_with_tarfile(root: Path) -> None:
    """Replace every shard by one that Python's own tarfile wrote, with its members the other way round."""
    for path in (root / "shards").glob("*.tar"):
        with tarfile.open(path) as tar:
            members = [(info, tar.extractfile(info).read()) for info in tar.getmembers()]  # type: ignore[union-attr]
        with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
            import io

            for pair in range(0, len(members), 2):
                for info, body in reversed(members[pair : pair + 2]):
                    tar.addfile(info, io.BytesIO(body))


def test_foreign_tars_take_the_description_given(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 7, shard_bytes=4096)
    repack_with_tarfile(tmp_path)
    (tmp_path / MANIFEST_NAME).unlink()
    (tmp_path / "dataset.json").unlink()
    with pytest.raises(InputError, match=r"dataset.json is missing.*--like"):
        index(tmp_path)
    assert not (tmp_path / MANIFEST_NAME).exists()
    assert index(tmp_path, dataset.info).fingerprint == dataset.manifest.fingerprint
    assert open_dataset(tmp_path).info == dataset.info


@pytest.mark.parametrize("name", ["channels", "text_width"])
def test_a_description_of_another_model_is_refused(tmp_path: Path, name: str) -> None:
    write_dataset(tmp_path)
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {name: 99}))
    with pytest.raises(InputError, match=f"dataset.json says {name} 99"):
        index(tmp_path)


def test_a_damaged_shard_is_named_and_the_old_manifest_stays(tmp_path: Path) -> None:
    write_dataset(tmp_path, 20, shard_bytes=4096)
    before = (tmp_path / MANIFEST_NAME).read_bytes()
    path = tmp_path / "shards/000002.tar"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ShardError, match=r"^shards/000002.tar"):
        index(tmp_path)
    assert (tmp_path / MANIFEST_NAME).read_bytes() == before


def test_flipped_data_gets_another_checksum(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    flip(tmp_path, dataset.manifest, row=3)
    assert index(tmp_path).fingerprint != dataset.manifest.fingerprint


def flip(root: Path, manifest: Manifest, row: int) -> None:
    path = root / manifest.shards[manifest.shard[row]]
    data = bytearray(path.read_bytes())
    data[int(manifest.offset[row] + manifest.nbytes[row]) - 1] ^= 1
    path.write_bytes(data)


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2)
    shard = tmp_path / "shards/000000.tar"
    (tmp_path / "shards/000001.tar").write_bytes(shard.read_bytes())
    with pytest.raises(InputError, match=r"appears twice, in shards/000000.tar and shards/000001.tar"):
        index(tmp_path)


def test_a_folder_without_tars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no .tar file"):
        index(tmp_path)
