"""How many frames a video has and how fast they follow each other, without decoding them."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av

from shards.prepare.media.clip_error import ClipError

_HIGHEST_FPS = 1000
# Headers of recordings of variable rate name the clock's rate; then their two rates are further apart than this.
_DOUBT = 0.05


def frame_rate(path: Path, stream: av.VideoStream) -> Fraction:
    """Frames per second by the header, or by the packets where it contradicts itself.

    Raises `ClipError` where neither tells, or what they tell is nonsense.
    """
    average, guessed = stream.average_rate, stream.guessed_rate
    rate = average or guessed
    if average and guessed and abs(average / guessed - 1) > _DOUBT:
        rate = _measured_rate(path) or rate
    if not rate:
        raise ClipError(path, "no frame rate in its header")
    if not 0 < rate <= _HIGHEST_FPS:
        raise ClipError(path, f"a frame rate of {float(rate):g} in its header")
    return Fraction(rate)


def count_packets(path: Path) -> int:
    """Packets of the first video stream, which are its frames. Raises FFmpegError and OSError."""
    return sum(1 for _ in _packets(path))


def _measured_rate(path: Path) -> Fraction | None:
    """Frames per second by the times of all packets, None where they do not tell."""
    times = [packet.pts * packet.time_base for packet in _packets(path) if packet.pts is not None]
    seconds = max(times, default=Fraction(0)) - min(times, default=Fraction(0))
    return ((len(times) - 1) / seconds).limit_denominator(1001) if seconds else None


def _packets(path: Path) -> Iterator[av.Packet]:
    with av.open(str(path), metadata_errors="ignore") as container:
        for packet in container.demux(container.streams.video[0]):
            if packet.size:
                yield packet
