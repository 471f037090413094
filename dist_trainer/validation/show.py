"""Sample videos as files: written whole or not at all, references beside them, and what a board shows of them."""

from __future__ import annotations

import secrets
from contextlib import suppress
from pathlib import Path

import numpy as np

from dist_trainer.board.moving import animated
from shards.atomic import place, replacing
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


def moving(path: Path) -> Path:
    """Where the GIF of a sample video lies, which boards show."""
    return path.with_suffix(".gif")


def write_shown(path: Path, frames: np.ndarray, fps: float) -> None:
    """Write the video `path` as `write` does, its GIF before it: where the video is, both are. Raises as `write`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(moving(path)) as file:
        file.write(animated(frames, fps))
    write(path, frames, fps)


def sweep(folder: Path) -> None:
    """Remove the half-written files that a kill left in a folder, in which nobody writes now."""
    for leftover in folder.glob(".*"):
        with suppress(OSError):  # NFS keeps such names of its own
            leftover.unlink()


def read(path: Path) -> np.ndarray:
    """All frames of a file that `write` wrote, uint8 [F,H,W,3]. Raises ClipError."""
    return np.stack([picture() for _, picture in timed_pictures(path)])
