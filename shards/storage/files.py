"""Shards in a folder, kept open between reads."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_OPEN_FILES = 256  # well below the usual limit of 1024 a process
_AGAIN_AFTER_S = (0.1, 0.5, 2.0)
# What waiting does not cure. Anything else may be a network file system that lost its server for a moment.
_LASTING = (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError)


def open_file(path: Path) -> int:
    """Descriptor of a regular file, for reading. Raises OSError, also for anything that is not one."""
    # A pipe that nobody writes to would block here.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise FileNotFoundError(errno.ENOENT, "not a regular file", str(path))


def fill(descriptor: int, view: memoryview, offset: int) -> int:
    """Read into ``view`` from byte ``offset``; how many bytes there were, fewer only at the end of the file."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


@dataclass
class _OpenFile:
    descriptor: int
    users: int = 0


class OpenFiles:
    """Files below a folder, at most ``limit`` kept open; one in use by any thread is never closed."""

    def __init__(self, root: Path, limit: int = _OPEN_FILES) -> None:
        self._root = root
        self._limit = limit
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _OpenFile] = OrderedDict()

    def fill(self, path: str, offset: int, view: memoryview) -> int:
        """Read into ``view`` from byte ``offset`` of a file, as `Storage.fill`. Raises OSError.

        A fault that may pass is met by opening the file anew, a few times in about three seconds.
        """
        for wait_s in _AGAIN_AFTER_S:
            try:
                return self._fill(path, offset, view)
            except _LASTING:
                raise
            except OSError:
                time.sleep(wait_s)
        return self._fill(path, offset, view)

    @contextmanager
    def open(self, path: str) -> Iterator[int]:
        """Descriptor of a file, valid inside the block; closed after an OSError there. Raises OSError."""
        entry = self._opened(path)
        try:
            yield entry.descriptor
        except OSError:
            with self._lock:
                if self._entries.get(path) is entry:
                    del self._entries[path]
            raise
        finally:
            with self._lock:
                entry.users -= 1
                if not entry.users and self._entries.get(path) is not entry:
                    os.close(entry.descriptor)

    def close(self) -> None:
        """Close the files; those in use at the end of their use."""
        with self._lock:
            self._close_idle(0)
            self._entries.clear()

    def _fill(self, path: str, offset: int, view: memoryview) -> int:
        with self.open(path) as descriptor:
            return fill(descriptor, view, offset)

    def _opened(self, path: str) -> _OpenFile:
        """A file with one user more."""
        with self._lock:
            if entry := self._entries.get(path):
                self._entries.move_to_end(path)
                entry.users += 1
                return entry
        # Not under the lock: a slow server would hold the reads of all other files.
        descriptor = open_file(self._root / path)
        with self._lock:
            entry = self._entries.get(path)
            if entry is None:
                self._close_idle(self._limit - 1)
                entry = self._entries[path] = _OpenFile(descriptor)
            else:
                os.close(descriptor)
            entry.users += 1
            return entry

    def _close_idle(self, keep: int) -> None:
        """Close the files unused for longest until ``keep`` are left."""
        if len(self._entries) <= keep:
            return
        idle = [path for path, entry in self._entries.items() if not entry.users]
        for path in idle[: len(self._entries) - keep]:
            os.close(self._entries.pop(path).descriptor)
