"""Build a dataset's manifest from its shards alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import numpy as np
from xxhash import xxh3_64_intdigest

from shards.counted import counted
from shards.dataset.encoding import check_encoded
from shards.dataset.info import INFO_NAME, DatasetInfo, read_info, write_info
from shards.dataset.left_out import read_left_out
from shards.dataset.manifest import MANIFEST_NAME, Manifest, RepeatedKey, read_manifest, write_manifest
from shards.dataset.output import rewriting
from shards.dataset.selection import by_shard, join, select
from shards.errors import InputError
from shards.formats import SHARDS
from shards.formats.row import Row, Stored, stored_row
from shards.formats.shard import find_shards, format_of, read_samples
from shards.formats.text import printable
from shards.geometry import Scale
from shards.storage import Root, Storage, open_storage
from shards.stream import stream

_BLOCK = 512  # of a tar


def index(
    root: Root,
    info: DatasetInfo | None = None,
    *,
    scale: Scale | None = None,
    fps: float | None = None,
    append: bool = False,
    threads: int | None = None,
    others: Counter[str] | None = None,
    on_shard: Callable[[str, int], None] = lambda shard, total: None,
) -> Manifest:
    """Scan the shards below ``root/shards``, or ``root``, and write ``root/manifest.parquet``.

    For our own shards these are the same bytes the writer made. Every payload is read and hashed, so it is
    also a full check of the data. Shards written by others are taken when they hold the same two members a
    sample; ``dataset.json``, which they lack, comes from ``info`` or is made from ``scale``, the VAE's
    compression; of one that is there, ``scale`` replaces that alone. ``fps`` is the rate of samples whose JSON
    says none. ``append`` scans only shards that the manifest does not know yet, or that have another size.
    Samples of ``left_out.jsonl`` stay out, broken or not. ``threads`` defaults to the CPU count;
    ``on_shard(path, total)`` is called after each shard scanned. What else lies in the shards is added to ``others``.

    Raises InputError when there are no shards, their encoding is unfinished, ``dataset.json`` is missing and neither
    ``info`` nor ``scale`` is given, ``append`` finds a shard gone, a key appears twice or the widths of the samples
    do not agree; ShardError for a damaged shard. The shards after the first one found wrong are not scanned.
    """
    storage = open_storage(root)
    seen, sizes = storage.stat(MANIFEST_NAME), find_shards(storage)
    check_encoded(storage)
    if not sizes:
        raise InputError(f"{root}/{SHARDS} holds no .tar file: give the folder that contains {SHARDS}/")
    described = info or _description(root, storage, scale)
    parts = [_known(storage, read_manifest(root), sizes) if append else Manifest.from_rows([])]
    names = [name for name in sizes if name not in parts[0].shards]
    left_out = {entry.place for entry in read_left_out(storage)}
    scanned, workers = partial(_scan, storage, fps=fps, left_out=left_out), threads or os.cpu_count() or 1
    try:
        with stream(names, scanned, depth=2 * workers, name="index", threads=workers) as found:
            for name, part in zip(names, found, strict=True):
                if part.first:
                    described = described or _made(part.first, scale)
                    check_widths(root, described, part.first)
                parts.append(part.manifest)
                if others is not None:
                    others.update(part.others)
                on_shard(name, len(names))
        manifest = by_shard(join(parts))
    except RepeatedKey as error:
        raise InputError(
            f"{root}: {error}: remove one of the two and run `ltx-shards index {root}` again, "
            f"or let `ltx-shards doctor {root} --repair` keep the first"
        ) from None
    if not len(manifest):
        raise InputError(
            f"{root}: {counted(len(sizes), 'shard')} without a sample, which is a .json and a .safetensors of one name"
        )
    with rewriting(storage, seen):
        if described and (info or scale):
            write_info(root, described)
        write_manifest(root, manifest)
    return manifest


def _description(root: Root, storage: Storage, scale: Scale | None) -> DatasetInfo | None:
    """``dataset.json`` with the scale given; None where it is to be made from one."""
    if scale is None:
        return read_info(root)
    return replace(read_info(root), scale=scale) if storage.stat(INFO_NAME) else None


def _made(first: Row, scale: Scale | None) -> DatasetInfo:
    assert scale is not None, "a description that is not made from a scale is given or read"
    return DatasetInfo(first.channels, first.text_width, scale)


def check_widths(root: Root, info: DatasetInfo, row: Row) -> None:
    """Raise InputError unless a sample has the channels and the text width of ``info``."""
    for name in ("channels", "text_width"):
        if getattr(row, name) != getattr(info, name):
            raise InputError(
                f"{root}: {INFO_NAME} says {name} {getattr(info, name)}, the shards hold "
                f"{getattr(row, name)} ({row.shard}, sample {row.key!r}): it belongs to another model"
            )


class _Part(NamedTuple):
    manifest: Manifest  # of one shard: a million rows as Python objects would take a gigabyte
    first: Row | None
    others: Counter[str]  # what else is in it


def _scan(
    storage: Storage, name: str, fps: float | None, left_out: Collection[tuple[str, str, str]]
) -> _Part:
    others: Counter[str] = Counter()
    known = [(key, checksum) for shard, key, checksum in left_out if shard == name]
    keys, halves = {key for key, _ in known}, {key for key, checksum in known if not checksum}

    def is_left_out(stored: Stored) -> bool:
        key = printable(stored.key)
        return key in keys and (name, key, f"{xxh3_64_intdigest(stored.payload):016x}") in left_out

    samples = read_samples(storage, name, others, halves)
    rows = [stored_row(name, stored, fps) for stored in samples if not is_left_out(stored)]
    return _Part(Manifest.from_rows(rows), rows[0] if rows else None, others)


def _known(storage: Storage, manifest: Manifest, sizes: dict[str, int]) -> Manifest:
    """The samples of shards that are as the manifest knows them."""
    if gone := [name for name in manifest.shards if name not in sizes]:
        raise InputError(
            f"{storage.name}/{MANIFEST_NAME} names {gone[0]}, which is not there: put it back, "
            f"or run `ltx-shards index {storage.name}` without --append"
        )
    ends = np.zeros(len(manifest.shards), np.int64)
    np.maximum.at(ends, manifest.shard, manifest.offset + manifest.nbytes)
    with ThreadPoolExecutor(min(32, 4 * (os.cpu_count() or 1))) as pool:
        ends_there = pool.map(
            lambda name, end: _ends_at(storage, name, end, sizes[name]), manifest.shards, ends.tolist()
        )
        same = np.fromiter(ends_there, np.bool_, len(ends))
    return select(manifest, same[manifest.shard])


def _ends_at(storage: Storage, name: str, end: int, size: int) -> bool:
    """Whether a shard's last payload ends at byte ``end``."""
    if format_of(name) != "tar":
        return size == end
    block = bytearray(_BLOCK)
    count = storage.fill(name, -(-end // _BLOCK) * _BLOCK, memoryview(block))
    return count == _BLOCK and not any(block)
