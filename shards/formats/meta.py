"""The JSON member of a sample: its caption, where it came from, its frame rate."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

from shards.formats.text import parse_json
from shards.geometry import Bucket

FORMAT = 1


def sample_json(
    *, caption: str, source: str, fps: float, width: int, height: int, frames: int, bucket: Bucket
) -> dict[str, Any]:
    """The JSON member of a sample: its caption, the file it came from, that file's size and rate, its bucket.

    ``width``, ``height`` and ``frames`` are the clip's own, before it was brought to ``bucket``.
    """
    return {
        "format": FORMAT,
        "caption": caption,
        "source": source,
        "fps": float(fps),
        "width": int(width),
        "height": int(height),
        "frames": int(frames),
        "bucket": str(bucket),
    }


class NoRate(ValueError):
    """The JSON member does not say how many frames a second the clip has."""


def read_meta(meta: bytes) -> dict[str, Any]:
    """The JSON member of a sample. Raises ValueError when it is not a table, or one of a newer format."""
    values = parse_json(meta)
    if not isinstance(values, dict):
        raise ValueError(f"the json member is not a table but {type(values).__name__}")
    # Anything but a whole number is somebody else's word.
    if isinstance(version := values.get("format"), int) and version > FORMAT:
        raise ValueError(f"the json member has format {version}, this code reads up to {FORMAT}")
    return values


def rate_of(values: Mapping[str, Any], fps: float | None = None) -> float:
    """Frames per second of a JSON member, ``fps`` where it has none. Raises ValueError unless positive."""
    rate = fps if values.get("fps") is None else values["fps"]
    if rate is None:
        raise NoRate("the json member needs a positive fps, found None")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not 0 < rate <= sys.float_info.max:
        raise ValueError(f"the json member needs a positive fps, found {rate!r}")
    return float(rate)
