"""Sample videos as files: written whole or not at all, references beside them, and read again for the board."""

from __future__ import annotations

import secrets
from pathlib import Path

import numpy as np

from shards.atomic import place
from shards.prepare.media.video import timed_pictures, write_clip


def beside(reference: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Both side by side, uint8 [F,H,2W,3]: `reference` [F',H,W,3] left, which shows each frame as long as it stands
    for, and `frames` [F,H,W,3] right.
    """
    count, shown = len(frames), len(reference)
    # Frames count from the first one, which both have.
    every = (count - 1) // (shown - 1) if shown > 1 else count
    held = np.minimum(np.arange(count) // max(1, every), shown - 1)
    return np.concatenate([reference[held], frames], axis=2)


def write(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write frames uint8 [F,H,W,3] as H.264, or a picture by suffix. Raises OSError and ClipError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{secrets.token_hex(4)}{path.suffix}")
    try:
        write_clip(temporary, frames, fps)
        place(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def read(path: Path) -> np.ndarray:
    """All frames of a file that `write` wrote, uint8 [F,H,W,3]. Raises ClipError."""
    return np.stack([picture() for _, picture in timed_pictures(path)])
