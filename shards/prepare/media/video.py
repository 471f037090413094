"""Clips and pictures as arrays: what a file holds, its frames, and their fit into a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image

from shards.prepare.media.clip_error import ClipError, reason_of
from shards.prepare.media.film import reading, writing
from shards.prepare.media.picture import IMAGE_SUFFIXES, read_picture
from shards.prepare.media.rate import count_packets

IMAGE_FPS = 1.0

Fit = Callable[[np.ndarray], np.ndarray]  # one frame [H,W,3] to [h,w,3]


class ClipInfo(NamedTuple):
    """What a file holds: frames, size in pixels as displayed, frames per second (a picture: 1, 1 fps)."""

    frames: int
    width: int
    height: int
    fps: float


class Piece(NamedTuple):
    """Frames that follow each other in a clip: uint8 [F,H,W,3], RGB, upright.

    `fps` is their own rate by their timestamps, None where those say nothing. It differs from the file's in
    recordings of variable rate.
    """

    frames: np.ndarray
    fps: float | None


def probe(path: Path) -> ClipInfo:
    """Length, size and frame rate of a video or picture. A video of one frame is a picture.

    Where the header has no length the packets are counted, without decoding them.

    Raises `ClipError` for what is not a video or picture, or holds no frame.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        height, width = read_picture(path).shape[:2]
        return ClipInfo(1, width, height, IMAGE_FPS)
    with reading(path) as film:
        height, width = film.picture(next(film.frames)).shape[:2]
    try:
        frames = film.length or count_packets(path)
    except (av.FFmpegError, OSError) as error:
        raise ClipError(path, reason_of(error)) from error
    return ClipInfo(frames, width, height, IMAGE_FPS if frames == 1 else float(film.rate))


def read_clip(path: Path, frames: int, fit: Fit | None = None) -> np.ndarray:
    """The first `frames` frames of a video or picture: uint8 [F,H,W,3], RGB, upright.

    `fit` is applied to each frame as it is decoded, so that a long clip of large frames is never held
    whole. Raises `ClipError` when the file breaks off before `frames` frames.
    """
    return next(read_windows(path, [0], frames, [fit])).frames


def read_windows(
    path: Path, starts: Sequence[int], frames: int, fits: Sequence[Fit | None]
) -> Iterator[Piece]:
    """Windows of `frames` frames from the frames numbered `starts`, each through its own of `fits`.

    The file is decoded once, as far as it is needed; windows must be in order and must not overlap.
    Raises `ClipError` when the file breaks off before the end of a window.
    """
    windows = list(zip(starts, fits, strict=True))
    kept: list[np.ndarray] = []
    times: list[float | None] = []
    count = 0
    for time, picture in timed_pictures(path):
        start, fit = windows[0]
        count += 1
        if count <= start:
            continue
        kept.append(picture() if fit is None else fit(picture()))
        times.append(time)
        if len(kept) < frames:
            continue
        yield Piece(np.stack(kept), _measured(times))
        kept, times = [], []
        del windows[0]
        if not windows:
            return
    raise ClipError(path, f"only {count} of {windows[0][0] + frames} frames can be decoded")


def timed_pictures(path: Path) -> Iterator[tuple[float | None, Callable[[], np.ndarray]]]:
    """Of each frame its time in seconds, None if not said, and what makes its array: not each is wanted.

    Arrays are uint8 [H,W,3], RGB, as displayed, of one size. Raises `ClipError` where the file is damaged.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        yield None, partial(read_picture, path)
        return
    with reading(path) as film:
        for frame in film.frames:
            yield frame.time, partial(film.picture, frame)


def write_clip(path: Path, frames: np.ndarray, fps: float, crf: int = 16) -> None:
    """Write uint8 [F,H,W,3] as H.264 (smaller `crf`, better picture), or a picture by suffix. Raises as `writing`."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        Image.fromarray(frames[0]).save(path)
        return
    with writing(path, Fraction(fps).limit_denominator(1001), crf) as append:
        for frame in frames:
            append(frame)


def cover(width: int, height: int, at: tuple[float, float] = (0.5, 0.5)) -> Fit:
    """A function that fits a frame into width x height: the largest part of that shape, scaled bicubically.

    `at` says which part, as fractions (left to right, top to bottom) of the room there is: (0.5, 0.5) is
    the centre. The part starts on a whole pixel, so that a frame that needs no scaling is cut and not
    resampled.
    """

    def fit(frame: np.ndarray) -> np.ndarray:
        full_height, full_width = frame.shape[:2]
        scale = max(width / full_width, height / full_height)
        part_width, part_height = min(width / scale, full_width), min(height / scale, full_height)
        left = int((full_width - part_width) * at[0] + 1e-6)
        top = int((full_height - part_height) * at[1] + 1e-6)
        box = (left, top, left + part_width, top + part_height)
        picture = Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC, box=box)
        return np.asarray(picture)

    return fit


def _measured(times: Sequence[float | None]) -> float | None:
    first, last = times[0], times[-1]
    if first is None or last is None or last <= first:
        return None
    return (len(times) - 1) / (last - first)
