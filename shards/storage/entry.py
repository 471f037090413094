"""One file of a storage, as listings give it."""

from __future__ import annotations

from typing import NamedTuple


class Entry(NamedTuple):
    """A file: its path, size in bytes, and when it was last written, in seconds of the storage's own clock."""

    path: str
    size: int
    modified: float


def is_temporary(path: str) -> bool:
    """Whether a file is one of a write under way, which listings leave out."""
    name = path.rpartition("/")[2]
    return name.startswith(".") and name.endswith(".tmp")
