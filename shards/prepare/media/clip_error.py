"""What is said of a file that cannot be used as a clip."""

from __future__ import annotations

from pathlib import Path


class ClipError(ValueError):
    """A file that cannot be used as a clip: `path`, and the `reason` in a few words."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason


def reason_of(error: Exception) -> str:
    """What went wrong, in a few words."""
    strerror = getattr(error, "strerror", None)
    return str(strerror or error)
