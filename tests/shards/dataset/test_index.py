from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset.index import index
from shards.dataset.manifest import MANIFEST_NAME
from shards.dataset.opened import open_dataset
from shards.doctor.diagnose import diagnose
from shards.doctor.repair import repair
from shards.errors import InputError, ShardError
from shards.formats.row import Stored
from shards.formats.shard import read_samples
from shards.geometry import Scale
from shards.reader import Reader
from shards.storage import Folder
from tests.support.damage import (
    UNFINISHED,
    edit_description,
    edit_json,
    flip,
    half_encoded,
    members,
    replace_member,
    write_tar,
)
from tests.support.datasets import SCALE, write_dataset

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
        found = members(path)
        write_tar(
            path, [member for pair in range(0, len(found), 2) for member in reversed(found[pair : pair + 2])]
        )


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
    flip(tmp_path, 3)
    assert index(tmp_path).fingerprint != dataset.manifest.fingerprint


def test_a_key_in_two_shards_is_refused(tmp_path: Path) -> None:
    write_dataset(tmp_path, 2)
    shard = tmp_path / "shards/000000.tar"
    (tmp_path / "shards/000001.tar").write_bytes(shard.read_bytes())
    with pytest.raises(InputError) as error:
        index(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}: key 'clips/sample_00000' appears twice, in shards/000000.tar and shards/000001.tar: remove "
        f"one of the two and run `ltx-shards index {tmp_path}` again, or let `ltx-shards doctor {tmp_path} --repair` "
        "keep the first"
    )


def test_a_folder_without_tars_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no .tar file"):
        index(tmp_path)


ORDERS = {
    "tensors first": lambda found: [member for pair in zip(found[1::2], found[::2], strict=True) for member in pair],
    "all json first": lambda found: [*found[::2], *found[1::2]],
    "backwards": lambda found: list(reversed(found)),
    "files between": lambda found: [
        extra for name, body in found for extra in ((name, body), (f"{name.partition('.')[0]}.mp4", b"video"))
    ],
    "files of their own": lambda found: [("README.txt", b"hello"), *found, ("list.csv", b"a,b")],
    "second files of a sample": lambda found: [
        *found, *((name.replace(".json", ".other.json"), body) for name, body in found[::2])
    ],
    "a dot before the names": lambda found: [(f"./{name}", body) for name, body in found],
}  # fmt: skip


@pytest.mark.parametrize("order", ORDERS)
def test_the_members_of_a_foreign_tar_may_come_in_any_order(tmp_path: Path, order: str) -> None:
    dataset = write_dataset(tmp_path, 9, shard_bytes=6000)
    for path in (tmp_path / "shards").glob("*.tar"):
        write_tar(path, ORDERS[order](members(path)))
    assert index(tmp_path).fingerprint == dataset.manifest.fingerprint
    with Reader(open_dataset(tmp_path)) as reader:
        assert len(reader.read(range(9))) == 9


@pytest.mark.parametrize(
    "place", ["shards/part-1/x.tar", "shards/deep/er/0.tar", "train.tar", "parts/train-0.tar"]
)
def test_shards_may_lie_in_other_folders(tmp_path: Path, place: str) -> None:
    dataset = write_dataset(tmp_path, 4)
    (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "shards/000000.tar").rename(tmp_path / place)
    found = index(tmp_path)
    assert found.shards == (place,)
    assert found.fingerprint == dataset.manifest.fingerprint
    with Reader(open_dataset(tmp_path)) as reader:
        assert len(reader.read(range(4))) == 4


def test_dots_in_the_folders_of_keys_are_kept(tmp_path: Path) -> None:
    import webdataset

    write_dataset(tmp_path, 2, keys=["a", "b"])
    path = tmp_path / "shards/000000.tar"
    write_tar(path, [(f"v1.2/{name}", body) for name, body in members(path)])
    keys = index(tmp_path).keys.tolist()
    assert keys == ["v1.2/a", "v1.2/b"]
    assert [sample["__key__"] for sample in webdataset.WebDataset(str(path), shardshuffle=False)] == keys


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_latents_of_other_formats_are_taken(tmp_path: Path, dtype: torch.dtype) -> None:
    write_dataset(tmp_path, 3, dtype=dtype)
    index(tmp_path)
    with Reader(open_dataset(tmp_path)) as reader:
        assert {sample.latents.dtype for sample in reader.read(range(3))} == {dtype}


def test_a_rate_that_the_json_lacks_is_asked_for(tmp_path: Path) -> None:
    write_dataset(tmp_path, 3, fps=[30.0])
    edit_json(tmp_path, 1, fps=None)
    with pytest.raises(InputError) as error:
        index(tmp_path)
    assert str(error.value) == (
        "shards/000000.tar: the json of sample 'clips/sample_00001' has no fps: give the clips' rate with --fps"
    )
    assert index(tmp_path, fps=12.5).fps.tolist() == [30.0, 12.5, 30.0]


def test_a_description_can_be_made_from_the_compression_alone(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 3)
    (tmp_path / "dataset.json").unlink()
    assert index(tmp_path, scale=SCALE).fingerprint == dataset.manifest.fingerprint
    info = open_dataset(tmp_path).info
    assert (info.channels, info.text_width, info.scale) == (4, 16, SCALE)
    assert info.vae.fingerprint == ""


def test_a_scale_replaces_nothing_else_of_a_description(tmp_path: Path) -> None:
    """The fingerprints keep training from taking another VAE, so they must not go by the way."""
    dataset = write_dataset(tmp_path, 3)
    assert index(tmp_path, scale=Scale(8, 32)).fingerprint == dataset.manifest.fingerprint
    assert open_dataset(tmp_path).info == replace(dataset.info, scale=Scale(8, 32))
    assert dataset.info.vae.fingerprint
    assert dataset.info.null_prompt_embeds


def test_a_scale_does_not_make_a_dataset_fit_another_model(tmp_path: Path) -> None:
    write_dataset(tmp_path, 3)
    edit_description(tmp_path, channels=99)
    with pytest.raises(InputError, match=r"dataset\.json says channels 99, the shards hold 4"):
        index(tmp_path, scale=SCALE)


def test_nothing_more_is_scanned_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A terabyte would be read before the user hears of its first shard."""
    write_dataset(tmp_path, 30, shard_bytes=1)
    edit_description(tmp_path, channels=99)
    scanned: list[str] = []

    def noted(storage: Folder, name: str, *options: Any) -> Iterator[Stored]:
        scanned.append(name)
        return read_samples(storage, name, *options)

    monkeypatch.setattr("shards.dataset.index.read_samples", noted)
    with pytest.raises(InputError, match=r"the shards hold 4 \(shards/000000.tar"):
        index(tmp_path, threads=1)
    assert len(scanned) < 6


def parts(root: Path, *sizes: int) -> None:
    """A dataset whose shards hold so many samples each."""
    first = 0
    for number, count in enumerate(sizes):
        keys = [f"clips/{n:03d}" for n in range(first, first + count)]
        write_dataset(root / "part", count, keys=keys, seed=number, shard_bytes=1 << 20)
        (root / "shards").mkdir(parents=True, exist_ok=True)
        (root / "part/shards/000000.tar").rename(root / f"shards/{number:06d}.tar")
        (root / "part/dataset.json").rename(root / "dataset.json")
        first += count


@settings(max_examples=15, deadline=None)
@given(counts=st.lists(st.integers(1, 4), min_size=2, max_size=5), known=st.data())
def test_an_append_gives_what_a_whole_index_gives(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], known: st.DataObject
) -> None:
    root = tmp_path_factory.mktemp("dataset")
    parts(root, *counts)
    index(root)
    whole = (root / MANIFEST_NAME).read_bytes()
    shards = sorted((root / "shards").glob("*.tar"))
    away = known.draw(st.sets(st.sampled_from(shards), min_size=1, max_size=len(shards) - 1))
    for path in away:
        path.rename(root / path.name)
    index(root)
    for path in away:
        (root / path.name).rename(path)
    scanned: list[str] = []
    index(root, append=True, on_shard=lambda name, _: scanned.append(name))
    assert (root / MANIFEST_NAME).read_bytes() == whole
    assert scanned == sorted(path.relative_to(root).as_posix() for path in away)


def test_an_append_scans_a_shard_that_has_grown(tmp_path: Path) -> None:
    parts(tmp_path, 3, 2)
    index(tmp_path)
    path = tmp_path / "shards/000000.tar"
    grown = [*members(path), *((name.replace("000", "900"), body) for name, body in members(path)[:2])]
    write_tar(path, grown)
    manifest = index(tmp_path, append=True)
    assert manifest.keys.tolist() == [
        "clips/000",
        "clips/001",
        "clips/002",
        "clips/900",
        "clips/003",
        "clips/004",
    ]


def test_an_append_says_that_a_shard_is_gone(tmp_path: Path) -> None:
    parts(tmp_path, 3, 2)
    index(tmp_path)
    (tmp_path / "shards/000000.tar").unlink()
    with pytest.raises(InputError, match=r"names shards/000000.tar, which is not there: put it back, or run"):
        index(tmp_path, append=True)


def test_an_append_of_a_key_that_is_there_is_refused(tmp_path: Path) -> None:
    parts(tmp_path, 3, 2)
    index(tmp_path)
    before = (tmp_path / MANIFEST_NAME).read_bytes()
    write_tar(tmp_path / "shards/zz.tar", members(tmp_path / "shards/000001.tar"))
    with pytest.raises(
        InputError, match=r"key 'clips/003' appears twice, in shards/000001.tar and shards/zz.tar"
    ):
        index(tmp_path, append=True)
    assert (tmp_path / MANIFEST_NAME).read_bytes() == before


def test_an_append_of_another_model_is_refused(tmp_path: Path) -> None:
    parts(tmp_path, 3)
    index(tmp_path)
    write_dataset(tmp_path / "other", 2, channels=6, keys=["a", "b"])
    (tmp_path / "other/shards/000000.tar").rename(tmp_path / "shards/zz.tar")
    with pytest.raises(InputError, match=r"dataset.json says channels 4, the shards hold 6 \(shards/zz.tar"):
        index(tmp_path, append=True)


@pytest.mark.parametrize("kind", ["tensors", "json", "members"])
def test_a_broken_sample_that_a_repair_left_out_does_not_stop_the_next_index(
    tmp_path: Path, kind: str
) -> None:
    write_dataset(tmp_path, 6)
    spoil: dict[str, tuple[str, Callable[[bytes], bytes | None]]] = {
        "tensors": ("safetensors", lambda data: b"\xff" * len(data)),
        "json": ("json", lambda data: b"{"),
        "members": ("json", lambda data: None),
    }
    replace_member(tmp_path, 2, *spoil[kind])
    with pytest.raises(ShardError, match="clips/sample_00002"):
        index(tmp_path)
    repair(diagnose(tmp_path))
    repaired = (tmp_path / MANIFEST_NAME).read_bytes()
    assert len(index(tmp_path)) == 5
    assert (tmp_path / MANIFEST_NAME).read_bytes() == repaired


def test_hidden_files_that_macos_puts_into_tars_are_no_samples(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 4)
    path = tmp_path / dataset.manifest.shards[0]
    hidden = [
        (f"{folder}/._{base}", b"Mac OS X")
        for folder, base in (name.rsplit("/", 1) for name, _ in members(path))
    ]
    write_tar(path, [("._.", b""), *hidden, *members(path), ("a.txt", b"")])
    others: Counter[str] = Counter()
    assert index(tmp_path, others=others).fingerprint == dataset.manifest.fingerprint
    assert others == {"hidden": 9, "txt": 1}


@pytest.mark.parametrize("description", [{}, {"scale": SCALE}, {"info": True}])
def test_a_part_of_what_is_being_encoded_is_no_dataset(tmp_path: Path, description: dict) -> None:
    info = write_dataset(tmp_path, 4).info
    half_encoded(tmp_path, 5, 2)
    given = {"info": info} if "info" in description else description
    with pytest.raises(InputError) as error:
        index(tmp_path, **given)
    assert str(error.value) == UNFINISHED.format(tmp_path)
    (tmp_path / ".encode/result.json").write_text("{}")
    assert len(index(tmp_path, info)) == 4
