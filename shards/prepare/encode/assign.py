"""Which bucket each clip goes to, which windows of it become samples, and whether its references fit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from shards.errors import InputError
from shards.geometry import Bucket, Scale
from shards.prepare.encode.pairing import Reference, pair
from shards.prepare.failures import Failure
from shards.prepare.media.video import ClipError, ClipInfo, probe
from shards.prepare.tables.table import Row


@dataclass(frozen=True)
class Rules:
    """How clips become samples.

    `windows`: most samples of a clip, None for as many as fit; with more than 1 they are named KEY-w0, KEY-w1.
    `short_videos`: what to do with a video shorter than every bucket of more than one frame: "leave" it out, or
    take its first frame as a "picture".
    """

    buckets: tuple[Bucket, ...]
    scale: Scale
    windows: int | None = 1
    short_videos: str = "leave"


class Window(NamedTuple):
    """A sample to be made: its key, and its first frame's number in the clip."""

    key: str
    start: int


class Clip(NamedTuple):
    """A row that can be encoded: what its file holds, the bucket it goes to, its windows and references."""

    row: Row
    info: ClipInfo
    bucket: Bucket
    windows: tuple[Window, ...]
    references: tuple[Reference, ...]


def check_buckets(buckets: Sequence[Bucket], scale: Scale) -> None:
    """Raise `InputError` naming the first bucket that the VAE cannot encode."""
    for bucket in buckets:
        try:
            scale.grid(bucket.frames, bucket.height, bucket.width)
        except InputError as error:
            raise InputError(f"--buckets {bucket} does not fit the VAE: {error}") from error


def choose_bucket(info: ClipInfo, buckets: Sequence[Bucket]) -> Bucket | None:
    """Of the buckets the clip fills, the one that keeps most of it, then the nearest in area; None if it fills none.

    What a bucket keeps is the share of the picture that is left when it is cut to the bucket's shape, times
    the bucket's frames: a tenth of the picture weighs as much as a tenth of the time.
    """

    def loss(bucket: Bucket) -> tuple[float, int, float]:
        area = bucket.width * bucket.height / (info.width * info.height)
        # Rounded, so that buckets of one shape and length tie and the area decides.
        return -round(_picture_kept(info, bucket) * bucket.frames, 6), -bucket.frames, abs(math.log(area))

    return min((bucket for bucket in buckets if bucket.frames <= info.frames), key=loss, default=None)


def share_kept(clip: Clip) -> tuple[float, float]:
    """The share of a clip's picture that is left when it is cut to shape, and that of its frames that are used."""
    return _picture_kept(clip.info, clip.bucket), clip.bucket.frames * len(clip.windows) / clip.info.frames


def starts(frames: int, length: int, most: int | None, step: int = 1) -> list[int]:
    """First frames of up to `most` windows of `length` frames, spread evenly over a clip of `frames` frames.

    The first is 0 and the last ends with the clip, but for rounding down to multiples of `step`. They do not
    overlap. `frames` is at least `length`.
    """
    pitch = -(-length // step)  # of windows end to end, in steps
    room = (frames - length) // step  # start of the last window, in steps
    count = 1 + room // pitch
    if most is not None:
        count = min(count, most)
    return [step * (number * room // (count - 1)) for number in range(count)] if count > 1 else [0]


def assign(row: Row, rules: Rules, frames: int | None = None) -> Clip | Failure:
    """What to make of a row, from its files' headers; `frames` where the clip has other than its header says.

    A row stands or falls as a whole: clip, caption and references stay together.
    """
    try:
        info = probe(row.media)
        if frames is not None:
            info = info._replace(frames=frames)
        bucket = _bucket(row, info, rules)
        references = tuple(pair(info, bucket, path, rules.scale) for path in row.references)
    except ClipError as error:
        return failure(row, error)
    step = math.lcm(*(reference.step or 1 for reference in references))
    found = starts(info.frames, bucket.frames, rules.windows, step)
    keys = [row.key if rules.windows == 1 else f"{row.key}-w{number}" for number in range(len(found))]
    windows = tuple(map(Window, keys, found))
    return Clip(row, info, bucket, windows, references)


def failure(row: Row, error: ClipError) -> Failure:
    """What to record of a row one of whose files cannot be used."""
    if error.path == row.media:
        return Failure(row.source, error.reason)
    return Failure(row.source, f"its reference {error.path.name}: {error.reason}")


def _picture_kept(info: ClipInfo, bucket: Bucket) -> float:
    aspect = (bucket.width * info.height) / (bucket.height * info.width)
    return min(aspect, 1 / aspect)


def _bucket(row: Row, info: ClipInfo, rules: Rules) -> Bucket:
    pictures = [bucket for bucket in rules.buckets if bucket.frames == 1]
    videos = [bucket for bucket in rules.buckets if bucket.frames > 1]
    if info.frames == 1:
        bucket = choose_bucket(info, pictures)
        if bucket is None:
            size = f"{rules.buckets[0].width}x{rules.buckets[0].height}"
            raise ClipError(row.media, f"a picture needs a bucket of 1 frame: add for example {size}x1")
        return bucket
    bucket = choose_bucket(info, videos)
    if bucket is None and pictures and (not videos or rules.short_videos == "picture"):
        bucket = choose_bucket(info, pictures)
    if bucket is None:
        shortest = min(videos, key=lambda bucket: bucket.frames)
        raise ClipError(
            row.media, f"{info.frames} frames, the shortest video bucket {shortest} needs {shortest.frames}"
        )
    return bucket
