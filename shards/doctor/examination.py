"""The examination of one sample: its bytes against the dataset's description and common sense."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import NamedTuple

import xxhash

from shards.dataset.info import DatasetInfo
from shards.doctor.content import content_problems
from shards.doctor.finding import KINDS
from shards.formats.header import ITEM_BYTES, read_header, sample_geometry
from shards.formats.meta import NoRate, rate_of, read_meta
from shards.formats.row import Row, Stored
from shards.formats.text import key_fault
from shards.geometry import Bucket, Grid, Scale

DTYPES = tuple(ITEM_BYTES)


class Problem(NamedTuple):
    """Something found; ``kind`` is one of ``shards.doctor.finding.KINDS``."""

    kind: str
    key: str
    detail: str


class Examined(NamedTuple):
    """A sample fit to be trained, as its shard has it, and what is odd about it."""

    row: Row
    latents: int  # hash of the latents' bytes
    clip: int  # hash of what the json says of its origin, 0 where it says nothing
    dtype: int  # of the latents, index into DTYPES
    sized: bool  # whether the json names a bucket
    problems: list[Problem]


class Unfit(Exception):
    """A sample that must not be trained: ``args`` are a kind and a detail."""


def examine(shard: str, stored: Stored, checksum: int, info: DatasetInfo, rate: float | None) -> Examined:
    """Look at one sample of ``shard``; ``checksum`` is its payload's, ``rate`` for a json without fps.

    Empty ``stored.meta`` is not looked at. Raises Unfit.
    """
    key = stored.key
    if fault := key_fault(key):
        raise Unfit("name", f"{key!a} {fault}")
    try:
        entries = read_header(stored.payload)
        geometry = sample_geometry(entries)
    except ValueError as error:
        raise Unfit("tensors", str(error)) from error
    for name in ("channels", "text_width"):
        found, expected = getattr(geometry, name), getattr(info, name)
        if found != expected:
            raise Unfit("model", f"{name} {found}, {expected} in dataset.json")
    problems = []
    for kind, detail in content_problems(stored.payload, entries):
        if KINDS[kind].severity == "error":
            raise Unfit(kind, detail)
        problems.append(Problem(kind, key, detail))
    meta = _meta(stored, rate)
    if not isinstance(caption := meta.get("caption"), str) or not caption.strip():
        problems.append(Problem("caption", key, f"caption {caption!r}"))
    if (bucket := _bucket(meta)) and bucket != (made := _size(info.scale, geometry.grid)):
        problems.append(Problem("bucket", key, f"{bucket}, its latents are of {made}"))
    row = Row(
        key, shard, stored.offset, len(stored.payload), checksum, fps=_rate(meta, rate), **geometry._asdict()
    )
    latents = entries["latents"]
    digest = xxhash.xxh3_64_intdigest(memoryview(stored.payload)[latents.begin : latents.end])
    dtype = DTYPES.index(latents.dtype)
    return Examined(row, digest, _clip(meta) if bucket else 0, dtype, bucket is not None, problems)


def _meta(stored: Stored, rate: float | None) -> Mapping[str, object]:
    if not stored.meta:
        return {"fps": rate, "caption": "not read"}
    try:
        return read_meta(stored.meta)
    except (ValueError, TypeError) as error:
        raise Unfit("json", str(error)) from error


def _rate(meta: Mapping[str, object], rate: float | None) -> float:
    try:
        return rate_of(meta, rate)
    except NoRate:
        raise Unfit("rate", "no fps in the json: index with --fps") from None
    except ValueError as error:
        raise Unfit("rate", str(error)) from error


def _size(scale: Scale, grid: Grid) -> Bucket:
    frames, height, width = scale.pixels(grid)
    return Bucket(width, height, frames)


def _bucket(meta: Mapping[str, object]) -> Bucket | None:
    try:
        (bucket,) = Bucket.parse_list(str(meta["bucket"]))
    except (KeyError, ValueError):
        return None
    return bucket


def _clip(meta: Mapping[str, object]) -> int:
    """Hash of the file and the part of it that a sample is from; 0 where its json does not say."""
    if not meta.get("source"):
        return 0
    origin = {name: value for name, value in meta.items() if name != "caption"}
    return xxhash.xxh3_64_intdigest(json.dumps(origin, sort_keys=True).encode("utf-8")) or 1
