"""Clips to windows of frames of their bucket's size, references cut at the same time and place."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from shards.geometry import Bucket
from shards.hashing import mix, sample_id, unit
from shards.prepare.encode.assign import Clip, Rules, Window, assign, failure
from shards.prepare.encode.pairing import Reference
from shards.prepare.failures import Failure
from shards.prepare.media.video import ClipError, Fit, Piece, cover, read_clip, read_windows
from shards.prepare.tables.table import Row

# Third value of the hash (seed, sample id, purpose): one independent stream of randomness per purpose.
TARGET_NOISE, REFERENCE_NOISE, CROP_X, CROP_Y = range(4)
# A window whose own rate is further from the file's than this has its own written down.
_VARIABLE_RATE = 0.05


class Decoded(NamedTuple):
    """The frames of a sample and of its references, uint8 [F,H,W,3], and the sample's rate in frames per second."""

    clip: Clip
    window: Window
    target: np.ndarray
    references: tuple[np.ndarray, ...]
    fps: float


Reading = Callable[[Row], Generator[Decoded | Failure, None, None]]


class _EndsEarly(ClipError):
    """A clip that ends in its first window, after `frames` frames: its header promises more."""

    def __init__(self, path: Path, reason: str, frames: int) -> None:
        super().__init__(path, reason)
        self.frames = frames


def decode(
    row: Row,
    rules: Rules,
    seed: int,
    reshape_mode: str = "center",
    reference_downscale: int = 1,
    frames: int | None = None,
) -> Generator[Decoded | Failure, None, None]:
    """The windows of a row in order, and last a failure where the row, or the rest of it, cannot be had.

    `reshape_mode` center cuts at the centre, random at a place drawn from (seed, sample id). References
    get the bucket's size divided by `reference_downscale`. Each file is decoded once, a window at a time; a clip
    that ends in its first window, before its header says, once more as one of the `frames` it has.
    """
    clip = assign(row, rules, frames)
    if isinstance(clip, Failure):
        yield clip
        return
    try:
        yield from _windows(clip, seed, reshape_mode, reference_downscale)
    except _EndsEarly as error:
        if frames is None and isinstance(assign(row, rules, error.frames), Clip):
            yield from decode(row, rules, seed, reshape_mode, reference_downscale, error.frames)
        else:
            yield failure(row, error)
    except ClipError as error:
        yield failure(row, error)


def drop(read: Reading, row: Row) -> None:
    """Read all of a row for nothing but to see whether that can be done."""
    for _ in read(row):
        pass


def _windows(clip: Clip, seed: int, reshape_mode: str, reference_downscale: int) -> Iterator[Decoded]:
    """The windows of a clip. Raises `ClipError`."""
    media, windows, bucket = clip.row.media, clip.windows, clip.bucket
    places = [_place(seed, window.key, reshape_mode) for window in windows]
    small = Bucket(bucket.width // reference_downscale, bucket.height // reference_downscale, bucket.frames)
    read, given = 0, False

    def counted(fit: Fit, frame: np.ndarray) -> np.ndarray:
        nonlocal read
        read += 1
        return fit(frame)

    fits = [partial(counted, fit) for fit in _fits(bucket, places)]
    targets = read_windows(media, [window.start for window in windows], bucket.frames, fits)
    references = [_reference(reference, windows, _fits(small, places)) for reference in clip.references]
    try:
        for window, target, *others in zip(windows, targets, *references, strict=True):
            given = True
            yield Decoded(clip, window, target.frames, tuple(others), _rate(clip, target))
    except ClipError as error:
        # Damaged data has a cause; a file that just ends has none.
        if given or error.path != media or error.__cause__:
            raise
        raise _EndsEarly(media, error.reason, read) from None


def _place(seed: int, key: str, reshape_mode: str) -> tuple[float, float]:
    if reshape_mode != "random":
        return 0.5, 0.5
    identity = sample_id(key)
    return float(unit(mix(seed, identity, CROP_X))), float(unit(mix(seed, identity, CROP_Y)))


def _fits(bucket: Bucket, places: Sequence[tuple[float, float]]) -> list[Fit]:
    return [cover(bucket.width, bucket.height, at) for at in places]


def _reference(reference: Reference, windows: Sequence[Window], fits: Sequence[Fit]) -> Iterator[np.ndarray]:
    if not reference.step:
        frame = read_clip(reference.path, 1)[0]
        for fit in fits:
            yield np.stack([fit(frame)])
        return
    starts = [reference.start(window.start) for window in windows]
    for piece in read_windows(reference.path, starts, reference.frames, fits):
        yield piece.frames


def _rate(clip: Clip, piece: Piece) -> float:
    if piece.fps is not None and abs(piece.fps / clip.info.fps - 1) > _VARIABLE_RATE:
        return piece.fps
    return clip.info.fps
