from __future__ import annotations

import gc
import os
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load

from shards.buffers import BufferPool
from shards.dataset.opened import Dataset
from shards.errors import DamagedSample, ShardError
from shards.formats.header import reference_names
from shards.formats.sample import Sample
from shards.reader import Reader
from shards.storage.cache import Cache
from tests.support.datasets import write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    root = tmp_path_factory.mktemp("dataset")
    return write_dataset(root, 40, references=[None, (1, 2, 2), None], shard_bytes=8 << 10)


def stored(dataset: Dataset, row: int) -> dict[str, torch.Tensor]:
    """The tensors of a row, read in the plainest way."""
    manifest = dataset.manifest
    with open(dataset.root / manifest.shards[manifest.shard[row]], "rb") as file:
        file.seek(int(manifest.offset[row]))
        return load(file.read(int(manifest.nbytes[row])))


def assert_is_row(dataset: Dataset, sample: Sample, row: int) -> None:
    tensors = stored(dataset, row)
    assert sample.key == dataset.manifest.keys[row]
    assert sample.id == dataset.manifest.ids[row]
    assert sample.fps == dataset.manifest.fps[row]
    assert sample.latents.dtype == torch.bfloat16
    assert torch.equal(sample.latents, tensors["latents"])
    assert torch.equal(sample.prompt_embeds, tensors["prompt_embeds"])
    expected = [tensors[name] for name in reference_names(tensors)]
    assert len(sample.references) == len(expected)
    assert all(map(torch.equal, sample.references, expected))


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("verify", [True, False])
def test_rows_come_whole_and_in_the_order_asked_for(dataset: Dataset, threads: int, verify: bool) -> None:
    order = np.random.default_rng(threads).permutation(len(dataset.manifest))
    with Reader(dataset, threads=threads, verify=verify) as reader:
        for part in np.array_split(order, 3):
            for sample, row in zip(reader.read(part), part, strict=True):
                assert_is_row(dataset, sample, int(row))


def test_one_row_may_be_read_twice(dataset: Dataset) -> None:
    with Reader(dataset) as reader:
        first, other, second = reader.read([3, 5, 3])
    first.latents.zero_()
    assert_is_row(dataset, second, 3)
    assert_is_row(dataset, other, 5)


def test_no_rows_give_no_samples(dataset: Dataset) -> None:
    with Reader(dataset) as reader:
        assert reader.read([]) == []


@pytest.mark.parametrize("row", [-1, 40])
def test_rows_outside_the_manifest_are_refused(dataset: Dataset, row: int) -> None:
    with Reader(dataset) as reader, pytest.raises(IndexError, match="of a manifest of 40"):
        reader.read([0, row])


def test_all_tensors_of_a_call_share_one_aligned_buffer(dataset: Dataset) -> None:
    with Reader(dataset) as reader:
        samples = reader.read(range(10))
    storages = {sample.latents.untyped_storage().data_ptr() for sample in samples}
    assert storages == {sample.prompt_embeds.untyped_storage().data_ptr() for sample in samples}
    assert len(storages) == 1
    for sample in samples:
        header = sample.latents.storage_offset() * 2 % 64
        assert header % 2 == 0
        assert sample.latents.is_contiguous()


def test_samples_outlive_the_reader(dataset: Dataset) -> None:
    with Reader(dataset) as reader:
        kept = reader.read([7])[0]
        for _ in range(5):
            reader.read(range(40))
    gc.collect()
    assert_is_row(dataset, kept, 7)


def test_calls_from_several_threads_do_not_mix(dataset: Dataset) -> None:
    parts = np.array_split(np.random.default_rng(0).permutation(40), 12)
    with Reader(dataset, threads=2) as reader, ThreadPoolExecutor(4) as pool:
        for part, samples in zip(parts, pool.map(reader.read, parts), strict=True):
            for sample, row in zip(samples, part, strict=True):
                assert_is_row(dataset, sample, int(row))


def test_the_reader_ends_its_threads_and_files(dataset: Dataset) -> None:
    import threading

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files(), threading.active_count()
    with Reader(dataset, threads=3) as reader:
        reader.read(range(40))
        assert open_files() > before[0]
    assert (open_files(), threading.active_count()) == before


def row_path(dataset: Dataset, row: int) -> Path:
    return dataset.root / dataset.manifest.shards[dataset.manifest.shard[row]]


@pytest.mark.parametrize("threads", [1, 4])
def test_every_flipped_bit_is_found_and_named(tmp_path: Path, threads: int) -> None:
    dataset = write_dataset(tmp_path, 12, shard_bytes=4096)
    manifest, row = dataset.manifest, 7
    path = row_path(dataset, row)
    whole = path.read_bytes()
    start, size = int(manifest.offset[row]), int(manifest.nbytes[row])
    with Reader(dataset, threads=threads) as reader:
        for position in (0, 3, 8, 40, size // 2, size - 1):
            damaged = bytearray(whole)
            damaged[start + position] ^= 4
            path.write_bytes(damaged)
            with pytest.raises(ShardError, match="xxh3_64 checksum") as error:
                reader.read(range(12))
            assert error.value.shard == manifest.shards[manifest.shard[row]]
            assert error.value.key == manifest.keys[row]
            assert error.value.expected == f"{int(manifest.checksum[row]):016x}" != error.value.found
        path.write_bytes(whole)
        assert_is_row(dataset, reader.read([row])[0], row)


@pytest.mark.parametrize("verify", [True, False])
def test_a_shard_cut_short_is_named_with_what_is_left(tmp_path: Path, verify: bool) -> None:
    dataset = write_dataset(tmp_path, 12, shard_bytes=4096)
    manifest, row = dataset.manifest, 7
    os.truncate(row_path(dataset, row), int(manifest.offset[row]) + 100)
    with (
        Reader(dataset, verify=verify) as reader,
        pytest.raises(ShardError, match="end of the file") as error,
    ):
        reader.read([row])
    assert (error.value.key, error.value.expected, error.value.found) == (
        manifest.keys[row],
        manifest.nbytes[row],
        100,
    )


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 4)
    row_path(dataset, 0).unlink()
    with Reader(dataset) as reader, pytest.raises(ShardError) as error:
        reader.read([0])
    root = dataset.root
    assert str(error.value) == (
        f"{root}/shards/000000.tar: sample 'clips/sample_00000': reading the file: expected success, "
        f"found No such file or directory; run `ltx-shards doctor {root}`"
    )
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_a_tensor_that_torch_refuses_is_damage(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: object) -> None:
        raise RuntimeError("shape is invalid")

    monkeypatch.setattr("shards.reader.views", refused)
    with Reader(dataset) as reader, pytest.raises(DamagedSample, match="shape is invalid"):
        reader.read([0])


def test_a_reader_may_be_closed_twice(dataset: Dataset, tmp_path: Path) -> None:
    reader = Reader(dataset, cache=Cache(tmp_path, 1 << 20))
    reader.read([0])
    reader.close()
    with open(tmp_path / "a", "wb") as first, open(tmp_path / "b", "wb") as second:
        reader.close()
        first.write(b"x")
        second.write(b"x")


@pytest.mark.parametrize("position", [0, 9, 25])
def test_a_damaged_header_is_named_even_without_checksums(tmp_path: Path, position: int) -> None:
    dataset = write_dataset(tmp_path, 4)
    path = row_path(dataset, 2)
    damaged = bytearray(path.read_bytes())
    damaged[int(dataset.manifest.offset[2]) + position] ^= 0x40
    path.write_bytes(damaged)
    with Reader(dataset, verify=False) as reader, pytest.raises(ShardError) as error:
        reader.read([2])
    assert error.value.key == dataset.manifest.keys[2]


@pytest.mark.parametrize("column", ["grid", "references", "text_tokens"])
def test_a_manifest_of_other_data_is_noticed(tmp_path: Path, column: str) -> None:
    dataset = write_dataset(tmp_path, 4, references=[(1, 2, 2)])
    stale = replace(dataset.manifest, **{column: getattr(dataset.manifest, column) + 1})
    with (
        Reader(replace(dataset, manifest=stale)) as reader,
        pytest.raises(ShardError, match="F, H, W of latents and references") as error,
    ):
        reader.read([1])
    assert error.value.key == dataset.manifest.keys[1]


def test_a_shard_error_survives_pickling() -> None:
    error = ShardError("shards/0.tar", "k", "checksum", "aa", "bb")
    copy = pickle.loads(pickle.dumps(error))
    assert str(copy) == str(error) == "shards/0.tar: sample 'k': checksum: expected aa, found bb"
    assert copy.key == "k"


MEGABYTES = 3 << 20


def test_a_buffer_is_used_again_once_no_tensor_refers_to_it() -> None:
    pool = BufferPool()
    first = pool.take(MEGABYTES)
    place, view = first.data_ptr(), first[1 << 20 :].view(torch.bfloat16)
    del first
    second = pool.take(MEGABYTES)
    assert second.data_ptr() != place
    del view
    assert pool.take(MEGABYTES - 5).data_ptr() == place


def test_a_buffer_much_too_large_is_not_used() -> None:
    pool = BufferPool()
    big = pool.take(64 << 20).data_ptr()
    small = pool.take(2 << 20)
    assert small.data_ptr() != big
    assert len(small) == 2 << 20
    assert pool.take(60 << 20).data_ptr() == big


def test_a_pool_keeps_so_many_buffers_and_no_more() -> None:
    pool = BufferPool(spare=2)
    buffers = [pool.take(MEGABYTES) for _ in range(5)]
    buffers.clear()
    assert len(pool._free) == 2
