"""Clips and pictures as arrays: what a file holds, its frames, and their fit into a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
IMAGE_FPS = 1.0


class ClipError(ValueError):
    """A file that cannot be used as a clip: `path`, and the `reason` in a few words."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


class ClipInfo(NamedTuple):
    """What a file holds: frames, size in pixels as displayed, frames per second (a picture: 1, 1 fps)."""

    frames: int
    width: int
    height: int
    fps: float


def probe(path: Path) -> ClipInfo:
    """Length, size and frame rate of a video or picture.

    A video is decoded whole only where its header has no length.

    Raises `ClipError` for what is not a video or picture, or holds no frame.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        height, width = _picture(path).shape[:2]
        return ClipInfo(1, width, height, IMAGE_FPS)
    try:
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = _video_stream(path, container)
            rate = stream.average_rate or stream.guessed_rate
            if not rate:
                raise ClipError(path, "no frame rate in its header")
            decoded = container.decode(stream)
            first = next(decoded, None)
            if first is None:
                raise ClipError(path, "no frame can be decoded")
            width, height = first.width, first.height
            if first.rotation % 180:
                width, height = height, width
            frames = stream.frames or 1 + sum(1 for _ in decoded)
    except (av.FFmpegError, OSError) as error:
        raise ClipError(path, _reason(error)) from error
    return ClipInfo(frames, width, height, float(rate))


def read_clip(path: Path, frames: int, fit: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
    """The first `frames` frames of a video or picture: uint8 [F,H,W,3], RGB, upright.

    `fit` is applied to each frame ([H,W,3] to [h,w,3]) as it is decoded, so that a long clip of large
    frames is never held whole. Raises `ClipError` when the file breaks off before `frames` frames.
    """
    kept: list[np.ndarray] = []
    try:
        for frame in _frames(path):
            kept.append(frame if fit is None else fit(frame))
            if len(kept) == frames:
                return np.stack(kept)
    except (av.FFmpegError, OSError) as error:
        raise ClipError(path, f"after {len(kept)} of {frames} frames: {_reason(error)}") from error
    raise ClipError(path, f"only {len(kept)} of {frames} frames can be decoded")


def write_clip(path: Path, frames: np.ndarray, fps: float, crf: int = 16) -> None:
    """Write uint8 [F,H,W,3] as H.264 (even sizes; smaller `crf`, better picture), or a picture by suffix.

    The same frames give the same bytes: the encoder runs in one thread, since its output depends on their
    number.
    """
    if path.suffix.lower() in IMAGE_SUFFIXES:
        Image.fromarray(frames[0]).save(path)
        return
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        # x264's macroblock tree gives other bytes now and then on processors with AVX-512.
        exact = {"threads": "1", "x264-params": "mbtree=0"}
        stream.options = {"crf": str(crf), "preset": "veryfast", **exact}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def cover(
    width: int, height: int, at: tuple[float, float] = (0.5, 0.5)
) -> Callable[[np.ndarray], np.ndarray]:
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


def _frames(path: Path) -> Iterator[np.ndarray]:
    if path.suffix.lower() in IMAGE_SUFFIXES:
        yield _picture(path)
        return
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = _video_stream(path, container)
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            # Phones write upright clips as sideways frames with a rotation (counter-clockwise, in degrees).
            yield np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)


def _video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    if not container.streams.video:
        raise ClipError(path, "no video stream in it")
    return container.streams.video[0]


def _picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ClipError(path, _reason(error)) from error


def _reason(error: Exception) -> str:
    strerror = getattr(error, "strerror", None)
    return str(strerror or error)
