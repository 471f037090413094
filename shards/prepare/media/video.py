"""Clips and pictures as arrays: what a file holds, its frames, and their fit into a bucket."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from PIL import Image, ImageOps

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
IMAGE_FPS = 1.0
_HIGHEST_FPS = 1000.0

Fit = Callable[[np.ndarray], np.ndarray]  # one frame [H,W,3] to [h,w,3]


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
        height, width = _picture(path).shape[:2]
        return ClipInfo(1, width, height, IMAGE_FPS)
    try:
        if path.stat().st_size == 0:
            raise ClipError(path, "the file is empty")
        with av.open(str(path), metadata_errors="ignore") as container:
            stream = video_stream(path, container)
            first, packets = None, 0
            for packet in container.demux(stream):
                packets += packet.size > 0
                if first is None:
                    first = next(iter(packet.decode()), None)
                if first is not None and stream.frames:
                    break
            if first is None:
                raise ClipError(path, "no frame can be decoded")
            width, height = first.width, first.height
            if first.rotation % 180:
                width, height = height, width
            frames = stream.frames or packets
            return ClipInfo(
                frames, width, height, IMAGE_FPS if frames == 1 else float(frame_rate(path, stream))
            )
    except (av.FFmpegError, OSError) as error:
        raise ClipError(path, reason_of(error)) from error


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
    try:
        for time, array in _frames(path):
            start, fit = windows[0]
            count += 1
            if count <= start:
                continue
            kept.append(array() if fit is None else fit(array()))
            times.append(time)
            if len(kept) < frames:
                continue
            yield Piece(np.stack(kept), _measured(times))
            kept, times = [], []
            del windows[0]
            if not windows:
                return
    except (av.FFmpegError, OSError) as error:
        raise ClipError(
            path, f"after {count} of {windows[0][0] + frames} frames: {reason_of(error)}"
        ) from error
    raise ClipError(path, f"only {count} of {windows[0][0] + frames} frames can be decoded")


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


def _frames(path: Path) -> Iterator[tuple[float | None, Callable[[], np.ndarray]]]:
    """Time in seconds of each frame, and a function that makes the array: not each frame is wanted."""
    if path.suffix.lower() in IMAGE_SUFFIXES:
        yield None, partial(_picture, path)
        return
    with av.open(str(path), metadata_errors="ignore") as container:
        stream = video_stream(path, container)
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            yield frame.time, partial(upright, frame)


def upright(frame: av.VideoFrame) -> np.ndarray:
    """A decoded frame as it is meant to be seen: uint8 [H,W,3], RGB."""
    # Phones write upright clips as sideways frames with a rotation (counter-clockwise, in degrees).
    return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)


def frame_rate(path: Path, stream: av.VideoStream) -> Fraction:
    """Frames per second by the header. Raises `ClipError` where it has none, or nonsense."""
    rate = stream.average_rate or stream.guessed_rate
    if not rate:
        raise ClipError(path, "no frame rate in its header")
    if not 0 < rate <= _HIGHEST_FPS:
        raise ClipError(path, f"a frame rate of {float(rate):g} in its header")
    return Fraction(rate)


def _measured(times: Sequence[float | None]) -> float | None:
    first, last = times[0], times[-1]
    if first is None or last is None or last <= first:
        return None
    return (len(times) - 1) / (last - first)


def video_stream(path: Path, container: av.container.InputContainer) -> av.VideoStream:
    """The video in a file. Raises `ClipError` where there is none."""
    if not container.streams.video:
        raise ClipError(path, "no video stream in it")
    return container.streams.video[0]


def _picture(path: Path) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ClipError(path, reason_of(error)) from error


def reason_of(error: Exception) -> str:
    """What went wrong, in a few words."""
    strerror = getattr(error, "strerror", None)
    return str(strerror or error)
