"""Where a dataset's files are: a folder here, or a prefix of an object store. One interface for both.

Paths are relative to the root, with slashes. A URL (s3, gs, az, http) is an object store, anything else a folder.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO, Protocol

from shards.atomic import replacing
from shards.entry import Entry, is_temporary
from shards.files import fill

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
        """Files whose path begins with `prefix`, which ends at a folder; sorted by path."""

    def stat(self, path: str) -> Entry | None:
        """One file, None when it is absent."""

    def remove(self, path: str) -> None:
        """Take a file away, if it is there."""

    def sweep(self, folder: str) -> None:
        """Take away what writers that were killed left in `folder`, not below it."""

    def local(self, path: str) -> AbstractContextManager[Path]:
        """A file of this machine with the same bytes, valid inside the block. Raises FileNotFoundError."""

    def fill(self, path: str, offset: int, view: memoryview) -> int:
        """Read into `view` from byte `offset`; the bytes read, fewer only at the end of the file."""

    def clock(self) -> float:
        """Seconds now, by the clock of `Entry.modified`."""


def is_url(root: Root) -> bool:
    """Whether `root` names an object store and not a folder."""
    return isinstance(root, str) and "://" in root


def open_storage(root: Root) -> Storage:
    """The storage at a folder or URL. Nothing is read yet. Raises InputError for a kind of URL not known."""
    if is_url(root):
        from shards.objects import ObjectStorage

        return ObjectStorage(str(root))
    return Folder(Path(root))


class Folder:
    """A folder of this machine or of a shared file system."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.name = str(root)

    def read(self, path: str) -> bytes:
        """All bytes of a file."""
        return (self.root / path).read_bytes()

    def write(self, path: str, data: bytes) -> None:
        """Put a file in place in one step; missing folders are made."""
        with self.writer(path) as file:
            file.write(data)

    @contextmanager
    def writer(self, path: str) -> Iterator[BinaryIO]:
        """Open a file that takes its name at the end of the block."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with replacing(target) as file:
            yield file

    def create(self, path: str, data: bytes) -> bool:
        """Put a file in place unless there is one: a hard link, which one of several callers gets."""
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, target)
        except FileExistsError:
            return False
        except FileNotFoundError:
            # Swept away as what a killed process left, while this one was held up.
            return self.create(path, data)
        finally:
            Path(temporary).unlink(missing_ok=True)
        return True

    def list(self, prefix: str = "") -> list[Entry]:
        """Files under a folder, without the temporary ones of writes under way."""
        found = []
        for folder, _, names in os.walk(self.root / prefix):
            for name in names:
                path = Path(folder, name)
                if (entry := self.stat(path.relative_to(self.root).as_posix())) and not is_temporary(name):
                    found.append(entry)
        return sorted(found)

    def stat(self, path: str) -> Entry | None:
        """One file, None when it is absent or no file."""
        target = self.root / path
        try:
            status = target.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(path, status.st_size, status.st_mtime) if target.is_file() else None

    def remove(self, path: str) -> None:
        """Take a file away, if it is there."""
        (self.root / path).unlink(missing_ok=True)

    def sweep(self, folder: str) -> None:
        """Take away all temporary files, for when nobody is expected to write there any more."""
        for path in (self.root / folder).glob(".*.tmp"):
            path.unlink(missing_ok=True)

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """The file itself."""
        target = self.root / path
        if not target.is_file():
            raise FileNotFoundError(str(target))
        yield target

    def fill(self, path: str, offset: int, view: memoryview) -> int:
        """Read into `view` from byte `offset`."""
        with open(self.root / path, "rb", buffering=0) as file:
            return fill(file.fileno(), view, offset)

    def clock(self) -> float:
        """Now, by the file system: a shared one stamps files with its server's time."""
        try:
            with tempfile.TemporaryFile(dir=self.root) as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return time.time()
