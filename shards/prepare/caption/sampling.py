"""A clip as a captioning model looks at it: a few small frames, evenly spread."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from shards.prepare.media.video import Fit, probe, read_windows


class Frames(NamedTuple):
    """Frames of a clip: uint8 [F,H,W,3], RGB, sides even; `fps` is their own rate. A picture is one frame."""

    pixels: np.ndarray
    fps: float


def sample_frames(path: Path, fps: float, most: int, area: int) -> Frames:
    """`fps` frames per second of a video, evenly thinned to `most`; each scaled down to `area` pixels at most.

    Frames are scaled as they are decoded, so memory holds the result and one frame of the file. Raises
    `ClipError` for what cannot be decoded as far as it is needed.
    """
    info = probe(path)
    seconds = info.frames / info.fps
    # A hair less, for a clip whose length is a whole number of steps but for rounding.
    count = max(1, min(math.ceil(seconds * fps - 1e-6), most, info.frames))
    starts = [index * info.frames // count for index in range(count)]
    pieces = read_windows(path, starts, 1, [_within(area)] * count)
    return Frames(np.concatenate([piece.frames for piece in pieces]), count / seconds)


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
