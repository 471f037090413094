"""Long videos frame by frame: read without being held, written as they come."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from shards.prepare.media.clip_error import ClipError, reason_of
from shards.prepare.media.picture import opaque
from shards.prepare.media.rate import frame_rate

# Their output depends on the number of threads, so it is fixed; x264's macroblock tree gives other bytes now and
# then on processors with AVX-512.
_EXACT = {"threads": "4", "x264-params": "mbtree=0"}
_BT601, _LIMITED = 6, 1  # how RGB becomes YUV here, said in the file so that players undo just that
_SQUARE = Fraction(1)
_OBLONG = 10  # times as wide as high, or the reverse: more is nonsense in a header
# A disk's or a folder's fault, not the frames'.
_STORAGE_ERRORS = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.ENOENT,
}


class Film(NamedTuple):
    """A video opened for reading: frames per second, frames by its header (0: not said), the frames in order.

    All frames have the size of the first: where a recording changes it, the later ones are scaled. `pixel` is the
    width of a pixel by its height, as it is stored: not 1 in recordings for television.
    """

    rate: Fraction
    length: int
    pixel: Fraction
    frames: Iterator[av.VideoFrame]

    def picture(self, frame: av.VideoFrame) -> np.ndarray:
        """One of `frames` as it is meant to be seen: uint8 [H,W,3], RGB, upright, of square pixels, on white."""
        return _seen(frame, self.pixel)


@contextmanager
def reading(path: Path) -> Iterator[Film]:
    """Open a video; its frames are decoded as they are taken, in several threads.

    Raises `ClipError` for what is not a video; so do the frames, with their number, where it is damaged.
    """
    try:
        if path.stat().st_size == 0:
            raise ClipError(path, "the file is empty")
        container = av.open(str(path), metadata_errors="ignore")
    except (av.FFmpegError, OSError) as error:
        raise ClipError(path, reason_of(error)) from error
    with container:
        if not container.streams.video:
            raise ClipError(path, "no video stream in it")
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        rate = Fraction(1) if stream.frames == 1 else frame_rate(path, stream)
        pixel = Fraction(stream.sample_aspect_ratio or 1)
        if not Fraction(1, _OBLONG) <= pixel <= _OBLONG:
            raise ClipError(path, f"pixels {float(pixel):g} times as wide as high in its header")
        yield Film(rate, stream.frames, pixel, _decoded(path, container, stream))


def _decoded(
    path: Path, container: av.container.InputContainer, stream: av.VideoStream
) -> Iterator[av.VideoFrame]:
    count, size = 0, None
    try:
        for frame in container.decode(stream):
            count += 1
            size = size or (frame.width, frame.height)
            yield frame if (frame.width, frame.height) == size else frame.reformat(*size)
    except (av.FFmpegError, OSError) as error:
        raise ClipError(path, f"after {count} frames: {reason_of(error)}") from error
    if count == 0:
        raise ClipError(path, "no frame can be decoded")


def _seen(frame: av.VideoFrame, pixel: Fraction = _SQUARE) -> np.ndarray:
    """A decoded frame, uint8 [H,W,3], RGB: what is transparent on white, square pixels, upright."""
    width, height = _square(frame, pixel)
    if _transparent(frame):
        pixels = opaque(frame.to_ndarray(format="rgba", width=width, height=height))
    else:
        pixels = frame.to_ndarray(format="rgb24", width=width, height=height)
    # Phones write upright clips as sideways frames with a rotation (counter-clockwise, in degrees).
    return np.rot90(pixels, round(frame.rotation / 90) % 4)


def _square(frame: av.VideoFrame, pixel: Fraction) -> tuple[int, int]:
    """Width and height once pixels are square: one side grows."""
    return round(frame.width * max(_SQUARE, pixel)), round(frame.height * max(_SQUARE, 1 / pixel))


def _transparent(frame: av.VideoFrame) -> bool:
    return any(component.is_alpha for component in frame.format.components)


@contextmanager
def writing(
    path: Path, rate: Fraction, crf: int, pixel: Fraction = _SQUARE
) -> Iterator[Callable[[av.VideoFrame | np.ndarray], None]]:
    """Give a function that appends a frame to an H.264 file: one as decoded, or uint8 [H,W,3], RGB.

    All get the size of the first, upright, and square pixels where `pixel`, the width of one by its height, is
    not 1. Frames as decoded keep their colours' description and are not converted where they need not be. Odd
    sides make a file with full colour resolution (yuv444p), since the usual one has none for half a pixel. The
    same frames give the same bytes.

    Raises `ClipError` for frames that cannot be encoded, OSError for a full or forbidden disk; the file is gone
    then.
    """
    try:
        with _as_its_fault(path), av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=rate)
            stream.options = {"crf": str(crf), "preset": "veryfast", **_EXACT}
            count = 0

            def append(frame: av.VideoFrame | np.ndarray) -> None:
                nonlocal count
                with _as_its_fault(path):
                    sideways = not isinstance(frame, np.ndarray) and frame.rotation % 180 != 0
                    frame = _prepared(frame)
                    if count == 0:
                        _describe(stream, frame, 1 / pixel if sideways else pixel)
                    picture = frame.reformat(stream.width, stream.height, stream.pix_fmt)
                    picture.pts, picture.time_base = count, 1 / rate
                    picture.pict_type = av.video.frame.PictureType.NONE  # the decoder's choice is not ours
                    container.mux(stream.encode(picture))
                count += 1

            yield append
            if count:
                container.mux(stream.encode())
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _prepared(frame: av.VideoFrame | np.ndarray) -> av.VideoFrame:
    if isinstance(frame, np.ndarray):
        return _from_rgb(frame)
    return _from_rgb(_seen(frame)) if frame.rotation % 360 or _transparent(frame) else frame


def _from_rgb(array: np.ndarray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(array), format="rgb24")


def _describe(stream: av.VideoStream, first: av.VideoFrame, pixel: Fraction) -> None:
    """Set a stream up for frames like the first."""
    stream.width, stream.height = _square(first, pixel)
    stream.pix_fmt = "yuv444p" if stream.width % 2 or stream.height % 2 else "yuv420p"
    context = stream.codec_context
    if first.format.name == "rgb24":
        context.colorspace, context.color_range = _BT601, _LIMITED
        return
    context.colorspace, context.color_range = first.colorspace, first.color_range
    context.color_primaries, context.color_trc = first.color_primaries, first.color_trc


@contextmanager
def _as_its_fault(path: Path) -> Iterator[None]:
    """Tell a full disk from frames that cannot be encoded."""
    try:
        yield
    except av.FFmpegError as error:
        if error.errno in _STORAGE_ERRORS:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise ClipError(path, f"cannot be encoded: {reason_of(error)}") from error
