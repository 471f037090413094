"""The JSON members of a few samples (caption, source), which the manifest and the reader leave aside."""

from __future__ import annotations

import tarfile
from collections.abc import Sequence
from typing import Any

from shards.dataset.opened import Dataset
from shards.errors import ShardError
from shards.formats.meta import read_meta
from shards.formats.shard import read_samples
from shards.storage import Storage, open_storage

_BLOCK = tarfile.BLOCKSIZE
_WINDOW = 64 << 10  # bytes before the tensors in which a tar of ours has them


def read_json(dataset: Dataset, rows: Sequence[int]) -> list[dict[str, Any]]:
    """The JSON member of each of these manifest rows.

    In a tar it is looked for just before the tensors, where it usually is, so that little of a remote shard is
    fetched; else the shard is read until it comes. Raises ShardError where a shard does not hold a sample.
    """
    manifest, storage = dataset.manifest, open_storage(dataset.root)
    places = [
        (manifest.shards[manifest.shard[row]], str(manifest.keys[row]), int(manifest.offset[row]))
        for row in rows
    ]
    found = {key: _before(storage, shard, key, offset) for shard, key, offset in places}
    for shard in dict.fromkeys(shard for shard, key, _ in places if found[key] is None):
        wanted = {key for name, key, _ in places if name == shard and found[key] is None}
        for stored in read_samples(storage, shard):
            if stored.key in wanted:
                found[stored.key] = stored.meta
                wanted.remove(stored.key)
            if not wanted:
                break
        for key in wanted:
            raise ShardError(shard, key, "sample", "one of this key", "none")
    return [_parsed(shard, key, found[key] or b"") for shard, key, _ in places]


def _before(storage: Storage, shard: str, key: str, offset: int) -> bytes | None:
    """The member KEY.json if its header lies in the blocks before `offset` of a tar."""
    begin = max(0, offset - _WINDOW)
    if not shard.endswith(".tar") or (offset - begin) % _BLOCK:
        return None
    data = bytearray(offset - begin)
    try:
        if storage.fill(shard, begin, memoryview(data)) != len(data):
            return None
    except FileNotFoundError as error:
        raise ShardError(shard, key, "reading the file", "success", "no such file") from error
    for start in range(len(data) - _BLOCK, -1, -_BLOCK):
        try:
            info = tarfile.TarInfo.frombuf(bytes(data[start : start + _BLOCK]), "utf-8", "surrogateescape")
        except tarfile.HeaderError:
            continue
        end = start + _BLOCK + info.size
        if info.isreg() and info.name == f"{key}.json" and end <= len(data):
            return bytes(data[start + _BLOCK : end])
    return None


def _parsed(shard: str, key: str, data: bytes) -> dict[str, Any]:
    try:
        return read_meta(data)
    except ValueError as error:
        raise ShardError(shard, key, "member", "a readable json", error) from error
