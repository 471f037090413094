"""Where a dataset's files are: a folder here, or a prefix of an object store. One interface for both.

Paths are relative to the root, with slashes. A URL (s3, gs, az, http) is an object store, anything else a folder.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO, Protocol

from shards.errors import InputError
from shards.storage.entry import Entry
from shards.storage.folder import Folder

Root = str | Path


class Storage(Protocol):
    """What a dataset, a job and a reader need of the place their files are in."""

    name: str  # as the user wrote it, for messages

    def read(self, path: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError."""

    def write(self, path: str, data: bytes) -> None:
        """Put a file in place in one step, replacing one that is there."""

    def writer(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open a file that takes its name only if the block ends without an error."""

    def create(self, path: str, data: bytes) -> bool:
        """Put a file in place unless there is one already: False then. Of several callers one succeeds."""

    def list(self, prefix: str = "") -> list[Entry]:
        """Files whose path begins with `prefix`, which ends at a folder; sorted by path. All, or an error."""

    def stat(self, path: str) -> Entry | None:
        """One file, None when it is absent."""

    def move(self, path: str, target: str) -> None:
        """Put a file in place under another name, replacing one that is there. Raises FileNotFoundError."""

    def remove(self, path: str) -> None:
        """Take a file away, if it is there."""

    def sweep(self, folder: str, age: float = 0.0) -> None:
        """Take away what writers that were killed left in `folder`, not below it, `age` seconds ago or more."""

    def local(self, path: str) -> AbstractContextManager[Path]:
        """A file of this machine with the same bytes, valid inside the block. Raises FileNotFoundError."""

    def fill(self, path: str, offset: int, view: memoryview) -> int:
        """Read into `view` from byte `offset`; the bytes read, fewer only at the end of the file."""

    def clock(self) -> float:
        """Seconds now, by the clock of `Entry.modified`."""


def is_url(root: Root) -> bool:
    """Whether `root` names an object store and not a folder."""
    return isinstance(root, str) and "://" in root


def is_web(root: Root) -> bool:
    """Whether `root` is at a web server: files there are only read, and not listed."""
    return isinstance(root, str) and root.startswith(("http://", "https://"))


def check_writable(root: Root) -> None:
    """Raise InputError for a place that is only read."""
    if is_web(root):
        name = open_storage(root).name
        raise InputError(f"{name}: a web server is only read: write to a folder, s3://, gs:// or az://")


def open_storage(root: Root) -> Storage:
    """The storage at a folder or URL. Nothing is read yet. Raises InputError for a kind of URL not known."""
    if is_url(root):
        from shards.storage.objects import ObjectStorage

        return ObjectStorage(str(root))
    return Folder(Path(root))
