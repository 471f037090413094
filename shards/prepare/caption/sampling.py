"""A clip as a captioning model looks at it: a few small frames, evenly spread."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from shards.prepare.media.video import ClipError, Fit, probe, timed_pictures

_ROUNDING_S = 1e-3  # of timestamps


class Frames(NamedTuple):
    """Frames of a clip: uint8 [F,H,W,3], RGB, sides even; `fps` is their own rate. A picture is one frame."""

    pixels: np.ndarray
    fps: float


def sample_frames(path: Path, fps: float, most: int, area: int) -> Frames:
    """`fps` frames per second of a video, evenly thinned to `most`; each scaled down to `area` pixels at most.

    They are what is on the screen at evenly spread times, so that a frame may be there twice where the rate
    varies. Frames are scaled as they are decoded, so memory holds the result and one frame of the file. Raises
    `ClipError` for what cannot be decoded as far as it is needed.
    """
    info = probe(path)
    seconds = info.frames / info.fps
    # A hair less, for a clip whose length is a whole number of steps but for rounding.
    count = max(1, min(math.ceil(seconds * fps - 1e-6), most, info.frames))
    fit = _within(area)
    pixels: list[np.ndarray] = []
    decoded = 0
    for end, picture in _shown(path, info.fps):
        decoded += 1
        due = sum(1 for index in range(len(pixels), count) if index * seconds / count < end - _ROUNDING_S)
        pixels += [fit(picture())] * due if due else []
        if len(pixels) == count:
            return Frames(np.stack(pixels), count / seconds)
    raise ClipError(path, f"only {decoded} of {info.frames} frames can be decoded")


def _shown(path: Path, rate: float) -> Iterator[tuple[float, Callable[[], np.ndarray]]]:
    """For each frame the time from the first until which it is shown, in seconds, and what makes its array.

    Where timestamps are absent or go back, as in recordings put end to end, time goes on at `rate`.
    """
    clock, before, shown = 0.0, None, None
    for time, picture in timed_pictures(path):
        if shown is not None:
            step = None if time is None or before is None else time - before
            clock += step if step is not None and step > 0 else 1 / rate
            yield clock, shown
        before, shown = time, picture
    if shown is not None:
        yield clock + 1 / rate, shown


def _within(area: int) -> Fit:
    """Scale a frame down to `area` pixels, keeping its shape; even sides, which video encoders need."""

    def fit(frame: np.ndarray) -> np.ndarray:
        height, width = frame.shape[:2]
        scale = min(1.0, math.sqrt(area / (height * width)))
        # Down, so that the area is kept.
        size = _even(width * scale), _even(height * scale)
        return np.asarray(Image.fromarray(frame).resize(size, Image.Resampling.BICUBIC))

    return fit


def _even(side: float) -> int:
    return max(2, int(side) // 2 * 2)
