"""Files below a folder, of this machine or of a shared file system."""

from __future__ import annotations

import errno
import math
import os
import secrets
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from shards.atomic import place, replacing
from shards.storage.entry import Entry, is_temporary
from shards.storage.files import fill, open_file

_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK)


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
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
        try:
            _write_new(temporary, data)
            try:
                os.link(temporary, target)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                _write_new(target, data)
        except FileExistsError:
            return False
        except FileNotFoundError:
            # Swept away as what a killed process left, while this one was held up.
            return self.create(path, data)
        except OSError as error:
            if error.filename in (None, str(temporary)):  # a full disk does not say which file it was
                error.filename = str(target)
            raise
        finally:
            with suppress(OSError):  # what was wrong with the file itself matters more
                temporary.unlink()
        return True

    def list(self, prefix: str = "") -> list[Entry]:
        """Files under a folder, without the temporary ones of writes under way; links to folders are followed.

        Raises OSError where a folder cannot be listed: nobody shall take its files for absent.
        """
        return sorted(_files(self.root, prefix.strip("/"), ()))

    def stat(self, path: str) -> Entry | None:
        """One file, None when it is absent or no file."""
        target = self.root / path
        try:
            status = target.stat()
        except (FileNotFoundError, NotADirectoryError):
            return None
        return Entry(path, status.st_size, status.st_mtime) if stat.S_ISREG(status.st_mode) else None

    def move(self, path: str, target: str) -> None:
        """Put a file in place under another name."""
        place(self.root / path, self.root / target)

    def remove(self, path: str) -> None:
        """Take a file away, if it is there."""
        (self.root / path).unlink(missing_ok=True)

    def sweep(self, folder: str, age: float = 0.0) -> None:
        """Take away the temporary files that nobody wrote to for `age` seconds."""
        latest = self.clock() - age if age else math.inf
        for path in (self.root / folder).glob(".*.tmp"):
            with suppress(FileNotFoundError):
                if path.stat().st_mtime < latest:
                    path.unlink()

    @contextmanager
    def local(self, path: str) -> Iterator[Path]:
        """The file itself."""
        target = self.root / path
        if not target.is_file():
            raise FileNotFoundError(str(target))
        yield target

    def fill(self, path: str, offset: int, view: memoryview) -> int:
        """Read into `view` from byte `offset`."""
        descriptor = open_file(self.root / path)
        try:
            return fill(descriptor, view, offset)
        finally:
            os.close(descriptor)

    def clock(self) -> float:
        """Now, by the file system: a shared one stamps files with its server's time."""
        try:
            with tempfile.TemporaryFile(dir=self.root) as file:
                return os.fstat(file.fileno()).st_mtime
        except OSError:
            return time.time()


def _write_new(path: Path, data: bytes) -> None:
    """Write a file that is not there yet, to the disk. After an error there is none."""
    try:
        with open(path, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError:
        raise
    except OSError:
        with suppress(OSError):
            path.unlink()
        raise


def _files(root: Path, folder: str, above: tuple[tuple[int, int], ...]) -> Iterator[Entry]:
    """Files below a folder that is inside those of `above`, each known by its device and number."""
    try:
        status = os.stat(root / folder)
        if (status.st_dev, status.st_ino) in above:
            return  # a link to a folder it lies in
        with os.scandir(root / folder) as found:
            children = list(found)
    except (FileNotFoundError, NotADirectoryError):
        return  # nothing there, or gone meanwhile
    within = (*above, (status.st_dev, status.st_ino))
    for child in children:
        path = f"{folder}/{child.name}" if folder else child.name
        try:
            status = child.stat()
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(status.st_mode):
            yield from _files(root, path, within)
        elif stat.S_ISREG(status.st_mode) and not is_temporary(child.name):
            yield Entry(path, status.st_size, status.st_mtime)
