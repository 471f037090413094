"""Which bucket each clip goes to, and its frames brought to that bucket."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from shards.errors import InputError
from shards.geometry import Bucket, Scale
from shards.hashing import mix, sample_id, unit
from shards.prepare.table import Row
from shards.prepare.video import IMAGE_SUFFIXES, ClipError, ClipInfo, cover, probe, read_clip

# Third value of the hash (seed, sample id, purpose): one independent stream of randomness per purpose.
TARGET_NOISE, REFERENCE_NOISE, CROP_X, CROP_Y = range(4)


class Job(NamedTuple):
    """A row that can be encoded: what its clip holds and the bucket it goes to."""

    row: Row
    info: ClipInfo
    bucket: Bucket


class Failure(NamedTuple):
    """A row that was left out: its media path as the table has it, and why."""

    source: str
    reason: str


class Decoded(NamedTuple):
    """A job's frames, uint8 [F,H,W,3] of its bucket's size; `reference` has the same shape, or is None."""

    job: Job
    target: np.ndarray
    reference: np.ndarray | None


def check_buckets(buckets: Sequence[Bucket], scale: Scale) -> None:
    """Raise `InputError` naming the first bucket that the VAE cannot encode."""
    if not buckets:
        raise InputError("no resolution bucket given: write for example 768x448x89")
    for bucket in buckets:
        try:
            scale.grid(bucket.frames, bucket.height, bucket.width)
        except InputError as error:
            raise InputError(f"bucket {bucket} does not fit the VAE: {error}") from error


def choose_bucket(info: ClipInfo, buckets: Sequence[Bucket]) -> Bucket | None:
    """Of the longest buckets the clip fills, the nearest in aspect, then in area; None if it fills none."""
    filled = [bucket for bucket in buckets if bucket.frames <= info.frames]
    longest = max((bucket.frames for bucket in filled), default=0)

    def distance(bucket: Bucket) -> tuple[float, float]:
        aspect = bucket.width / bucket.height * info.height / info.width
        area = bucket.width * bucket.height / (info.width * info.height)
        # Rounded, so that buckets of one shape tie and the area decides.
        return round(abs(math.log(aspect)), 6), abs(math.log(area))

    return min((bucket for bucket in filled if bucket.frames == longest), key=distance, default=None)


def assign(rows: Iterable[Row], buckets: Sequence[Bucket]) -> Iterator[Job | Failure]:
    """One job or failure per row, in order, from the files' headers.

    A row stands or falls as a whole: clip, caption and reference stay together.
    """
    for row in rows:
        try:
            yield _assign(row, buckets)
        except ClipError as error:
            yield Failure(row.source, _reason(row, error))


def decode(job: Job, seed: int, reshape_mode: str) -> Decoded | Failure:
    """The frames of a job and of its reference, cut at the same place.

    `reshape_mode` center cuts at the centre, random at a place drawn from (seed, sample id).
    """
    row, bucket = job.row, job.bucket
    at = (0.5, 0.5)
    if reshape_mode == "random":
        identity = sample_id(row.key)
        at = float(unit(mix(seed, identity, CROP_X))), float(unit(mix(seed, identity, CROP_Y)))
    fit = cover(bucket.width, bucket.height, at)
    try:
        target = read_clip(row.media, bucket.frames, fit)
        reference = None if row.reference is None else read_clip(row.reference, bucket.frames, fit)
    except ClipError as error:
        return Failure(row.source, _reason(row, error))
    return Decoded(job, target, reference)


def _assign(row: Row, buckets: Sequence[Bucket]) -> Job | Failure:
    info = probe(row.media)
    bucket = choose_bucket(info, buckets)
    if bucket is None:
        if row.media.suffix.lower() in IMAGE_SUFFIXES:
            width, height = buckets[0].width, buckets[0].height
            return Failure(
                row.source, f"a picture needs a bucket of 1 frame: add for example {width}x{height}x1"
            )
        shortest = min(bucket.frames for bucket in buckets)
        return Failure(row.source, f"{info.frames} frames, the shortest bucket needs {shortest}")
    if row.reference is not None:
        frames = probe(row.reference).frames
        if frames < bucket.frames:
            return Failure(
                row.source,
                f"its reference {row.reference.name} has {frames} frames, {bucket.frames} are needed",
            )
    return Job(row, info, bucket)


def _reason(row: Row, error: ClipError) -> str:
    return error.reason if error.path == row.media else f"its reference {error.path.name}: {error.reason}"
