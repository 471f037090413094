"""A dataset in the other format of shards: the same samples to the byte, shard by shard."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from shards.dataset.info import write_info
from shards.dataset.manifest import Manifest, write_manifest
from shards.dataset.opened import Dataset, open_dataset
from shards.dataset.output import UNFINISHED_NAME, move, new_dataset, whole, workspace
from shards.errors import InputError, ShardError
from shards.formats import SHARDS
from shards.formats.mds import INDEX_NAME, scan_mds, streaming, write_mds
from shards.formats.meta import read_meta
from shards.formats.row import Row, Stored, stored_row
from shards.formats.shard import FORMATS, format_of, read_samples
from shards.formats.tar import write_shard
from shards.storage import Folder, Root, Storage, open_storage


@dataclass(frozen=True)
class ConvertReport:
    """What ``convert`` wrote; ``fingerprint`` is that of the manifest, the same as the source's.

    ``left_behind`` counts what the shards hold beside the two members of a sample: files by their extension in a
    tar, columns by their name in MDS.
    """

    samples: int
    shards: int
    nbytes: int  # of the shards
    fingerprint: str
    left_behind: dict[str, int]
    was_complete: bool = False  # before the call, which wrote nothing


def convert(
    root: Root, out: Root, to: str, *, on_sample: Callable[[int], None] = lambda total: None
) -> ConvertReport:
    """Write the dataset in ``root`` into the empty folder ``out`` with shards of the format ``to``, tar or mds.

    The samples of the manifest are taken, each compared with its checksum, with their tensors and their JSON to
    the byte; what else lies in the shards of others stays behind and is counted. One shard becomes one shard, so
    that our own tars come back byte for byte from MDS. ``on_sample(total)`` is called after each sample. What an
    interrupted call left in ``out`` is replaced, what a complete one wrote stays. Raises InputError for a
    format that is not known or that the dataset has already, when ``out`` holds something else, or when MDS is asked
    for without its library; ShardError for damaged bytes.
    """
    if to not in FORMATS:
        raise InputError(f"--to {to!r}: give {' or '.join(FORMATS)}")
    dataset = open_dataset(root)
    if all(format_of(name) == to for name in dataset.manifest.shards):
        raise InputError(f"{root}: its shards are {to} already")
    if done := _written(dataset, out, to):
        return _report(out, done, {}, was_complete=True)
    if to == "mds":
        streaming()  # that the library is missing is said before anything is written
    left_behind: Counter[str] = Counter()
    with new_dataset(out, f"convert --to {to}") as storage:
        shards = _shards(dataset, on_sample, left_behind)
        manifest = Manifest.from_rows(list(_WRITERS[to](storage, shards)))
        if manifest.fingerprint != dataset.manifest.fingerprint:
            expected, found = dataset.manifest.fingerprint, manifest.fingerprint
            raise ShardError(f"{out}/{SHARDS}", "", "fingerprint of what was written", expected, found)
        write_info(out, dataset.info)
        write_manifest(out, manifest)
    return _report(out, manifest, dict(left_behind.most_common()))


def _report(
    out: Root, manifest: Manifest, left_behind: dict[str, int], was_complete: bool = False
) -> ConvertReport:
    nbytes = int(sum(entry.size for entry in open_storage(out).list(SHARDS)))
    return ConvertReport(
        len(manifest), len(manifest.shards), nbytes, manifest.fingerprint, left_behind, was_complete
    )


def _written(dataset: Dataset, out: Root, to: str) -> Manifest | None:
    """The manifest of ``out`` where it is complete and has the samples of ``dataset`` in the format ``to``."""
    manifest = whole(out)
    if manifest is None or manifest.fingerprint != dataset.manifest.fingerprint:
        return None
    if {*map(format_of, manifest.shards)} != {to}:
        return None
    open_storage(out).remove(UNFINISHED_NAME)  # of a call that was killed after its last step
    return manifest


def _shards(
    dataset: Dataset, on_sample: Callable[[int], None], left_behind: Counter[str]
) -> Iterator[Iterator[Stored]]:
    """The samples of each shard that the manifest lists, in the order they lie there."""
    manifest, storage = dataset.manifest, open_storage(dataset.root)
    wanted: dict[str, dict[int, int]] = defaultdict(dict)
    for number, (shard, offset) in enumerate(
        zip(manifest.shard.tolist(), manifest.offset.tolist(), strict=True)
    ):
        wanted[manifest.shards[shard]][offset] = number

    def samples(name: str) -> Iterator[Stored]:
        left = wanted[name]
        for stored in read_samples(storage, name, left_behind):
            number = left.pop(stored.offset, None)
            if number is None:  # bytes that the manifest does not list
                continue
            fps, expected = float(manifest.fps[number]), int(manifest.checksum[number])
            found = stored_row(name, stored, fps).checksum
            if found != expected:
                raise ShardError(name, stored.key, "xxh3_64 checksum", f"{expected:016x}", f"{found:016x}")
            yield stored._replace(meta=_with_rate(stored.meta, fps))
            on_sample(len(manifest))
        if left:
            key = manifest.keys[min(left.values())]
            raise ShardError(name, key, "samples at the manifest's offsets", "all", f"{len(left)} missing")

    for name in manifest.shards:
        yield samples(name)


def _with_rate(meta: bytes, fps: float) -> bytes:
    """A JSON member as it is, or with the rate that only the manifest knew."""
    values = read_meta(meta)
    if values.get("fps") is not None:
        return meta
    return json.dumps(values | {"fps": fps}, sort_keys=True).encode()


def _write_tars(storage: Storage, shards: Iterable[Iterable[Stored]]) -> Iterator[Row]:
    for number, samples in enumerate(shards):
        parts = ((stored.key, stored.meta, stored.payload) for stored in samples)
        yield from write_shard(storage, f"{SHARDS}/{number:06d}.tar", parts)


def _write_mds(storage: Storage, shards: Iterable[Iterable[Stored]]) -> Iterator[Row]:
    with workspace(storage) as folder:
        for file in write_mds(folder / SHARDS, shards):
            path = f"{SHARDS}/{file.name}"
            if file.name != INDEX_NAME:
                # Read back from the file itself: the places of the payloads are the library's to choose.
                yield from scan_mds(Folder(folder), path)
            move(file, storage, path)


_WRITERS = {"tar": _write_tars, "mds": _write_mds}
