"""A sample as a shard of any format holds it, and its row of the manifest."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

import xxhash

from shards.errors import InputError, ShardError
from shards.formats.header import read_header, sample_geometry
from shards.formats.meta import NoRate, rate_of, read_meta
from shards.formats.text import key_fault
from shards.geometry import Grid


class Row(NamedTuple):
    """One sample as found in a shard. ``channels`` and ``text_width`` must agree and are not stored."""

    key: str
    shard: str
    offset: int
    nbytes: int
    checksum: int
    grid: Grid
    text_tokens: int
    fps: float
    channels: int
    text_width: int
    references: tuple[Grid, ...] = ()


class Stored(NamedTuple):
    """A sample as a shard holds it: ``offset`` is that of its safetensors payload, ``meta`` its JSON bytes."""

    key: str
    offset: int
    meta: bytes
    payload: bytes


def check_key(key: str) -> None:
    """Raise InputError unless ``key`` names one sample for every reader of WebDataset tars.

    They split a member's name at its first dot, so a dot in a key would merge samples silently.
    """
    wrong = next((mark for mark in (".", "\\", "\0", "\n") if mark in key), None)
    if wrong is not None:
        raise InputError(
            f"key {key!r} contains {wrong!r}, where WebDataset would cut it; use another character"
        )
    if key_fault(key) or key.endswith("/") or "//" in key:
        raise InputError(f"key {key!r} is not usable as a file name inside a tar")


def new_row(shard: str, key: str, meta: Mapping[str, Any] | bytes, payload: bytes) -> tuple[Row, bytes]:
    """Row (offset 0) and JSON member of a sample to be written; bytes of a JSON member stay as they are.

    Raises InputError where no reader could take it.
    """
    check_key(key)
    try:
        data = meta if isinstance(meta, bytes) else _json_bytes(meta)
        return _row(shard, key, data, payload), data
    except ValueError as error:
        raise InputError(f"sample {key!r} cannot be written: {error}") from error


def stored_row(shard: str, stored: Stored, fps: float | None = None) -> Row:
    """The row of a sample of ``shard``; ``fps`` is for a JSON member without one. Raises as ``scan_shard`` does."""
    key = stored.key
    if fault := key_fault(key):
        raise InputError(f"{shard}: key {key!r} {fault}: write the shard again with plain names")
    try:
        return _row(shard, key, stored.meta, stored.payload, fps)._replace(offset=stored.offset)
    except NoRate:
        raise InputError(
            f"{shard}: the json of sample {key!r} has no fps: give the clips' rate with --fps"
        ) from None
    except ValueError as error:
        raise ShardError(shard, key, "member", "a readable sample", error) from error


def _json_bytes(meta: Mapping[str, Any]) -> bytes:
    return json.dumps(dict(meta), sort_keys=True, ensure_ascii=False).encode("utf-8")


def _row(shard: str, key: str, meta: bytes, payload: bytes, fps: float | None = None) -> Row:
    """The row of one sample, with offset 0. Raises ValueError saying what the two members lack."""
    geometry = sample_geometry(read_header(payload))
    rate = rate_of(read_meta(meta), fps)
    return Row(
        key=key,
        shard=shard,
        offset=0,
        nbytes=len(payload),
        checksum=xxhash.xxh3_64_intdigest(payload),
        fps=rate,
        **geometry._asdict(),
    )
