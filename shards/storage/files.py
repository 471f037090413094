"""Shards in a folder, kept open between reads."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_OPEN_FILES = 256  # well below the usual limit of 1024 a process


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
        """Read into ``view`` from byte ``offset`` of a file, as `Storage.fill`. Raises OSError."""
        with self.open(path) as descriptor:
            return fill(descriptor, view, offset)

    @contextmanager
    def open(self, path: str) -> Iterator[int]:
        """Descriptor of a file, valid inside the block. Raises OSError when it cannot be opened."""
        with self._lock:
            entry = self._entries.get(path)
            if entry is None:
                self._close_idle(self._limit - 1)
                entry = self._entries[path] = _OpenFile(os.open(self._root / path, os.O_RDONLY))
            self._entries.move_to_end(path)
            entry.users += 1
        try:
            yield entry.descriptor
        finally:
            with self._lock:
                entry.users -= 1

    def close(self) -> None:
        """Close the files that nobody uses."""
        with self._lock:
            self._close_idle(0)

    def _close_idle(self, keep: int) -> None:
        """Close the files unused for longest until ``keep`` are left."""
        if len(self._entries) <= keep:
            return
        idle = [path for path, entry in self._entries.items() if not entry.users]
        for path in idle[: len(self._entries) - keep]:
            os.close(self._entries.pop(path).descriptor)
