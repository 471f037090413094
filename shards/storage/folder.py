"""Files below a folder, of this machine or of a shared file system."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from shards.atomic import replacing
from shards.storage.entry import Entry, is_temporary
from shards.storage.files import fill


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
