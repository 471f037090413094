"""Samples kept on a node's own disk: one file each, shared by all processes there, the least recently used go first."""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import FileIO
from pathlib import Path

import xxhash

from shards.errors import InputError
from shards.storage.files import fill

_SUBFOLDER = "ltx-samples"  # only files in here are ever removed
_LEDGER = "ledger"  # whoever holds a lock on it may change it
_RECORD = struct.Struct("<qQ")  # bytes in use; the start of the machine that they were counted in
_STALE_S = 300.0  # an unfinished file this old was left by a killed process: a write takes milliseconds
_FULL = 0.9  # eviction leaves so much of the limit, so that it is not done for every file
_PAUSE_S = 60.0  # without writes after one failed


class Cache:
    """Files of about ``limit`` bytes together in ``folder``, by any number of processes of one node.

    A file is renamed into place whole but not forced to disk, so after a crash of the machine it may hold anything:
    the caller checks what it gets. The ledger counts bytes before they are written; a count of the files replaces
    it when it exceeds the limit, when it cannot be read, and when the machine was started anew. What others are
    writing during a count is not in it: so much may be above the limit until the next.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        """Raises InputError when the folder cannot be made or written."""
        self._folder = folder / _SUBFOLDER
        self._limit = limit
        self._paused_until = 0.0
        self._warned = False
        self._lock = threading.Lock()  # a lock on the ledger excludes other processes, not other threads
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(self._folder / _LEDGER, os.O_RDWR | os.O_CREAT, 0o666)
            # A file object knows that it is closed; the number of a descriptor may be another file's by then.
            self._ledger = FileIO(descriptor, "r+")
            self._boot = _boot()
            with self._locked():
                if self._used() > self._limit:
                    self._set_used(self._make_room(0))
        except OSError as error:
            raise InputError(
                f"cache folder {folder} cannot be used: {error.strerror}; name one on this node's own disk"
            ) from error

    def get(self, name: str, view: memoryview) -> bool:
        """Fill ``view`` from the file of this name; False where there is none of that size."""
        try:
            descriptor = os.open(self._path(name), os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            status = os.fstat(descriptor)
            if status.st_size != len(view) or fill(descriptor, view, 0) != len(view):
                return False
            # The time of last use; the system's own is switched off on many machines.
            with suppress(OSError):  # of a file of another user, or a disk that is read-only
                os.utime(descriptor)
        except OSError:
            return False
        finally:
            os.close(descriptor)
        return True

    def put(self, name: str, data: memoryview) -> None:
        """Keep a file, making room first; nothing once the cache is closed.

        A disk that is full or fails is said once, and nothing is kept then.
        """
        if time.monotonic() < self._paused_until or len(data) > _FULL * self._limit:
            return
        path = self._path(name)
        temporary = path.with_name(f".{uuid.uuid4().hex}.tmp")
        try:
            if not self._reserve(len(data)):
                return
            with open(temporary, "xb", buffering=0) as file:
                done = 0
                while done < len(data):
                    done += file.write(data[done:])
            os.replace(temporary, path)
        except OSError as error:
            self._give_up(error, temporary)

    def close(self) -> None:
        """Close the ledger; the files stay."""
        with self._lock:
            self._ledger.close()

    def _path(self, name: str) -> Path:
        return self._folder / f"{xxhash.xxh3_128_hexdigest(name.encode('utf-8'))}.sample"

    def _reserve(self, nbytes: int) -> bool:
        """Count ``nbytes`` more as in use, after an eviction where they exceed the limit; False when closed."""
        with self._locked() as is_open:
            if is_open:
                used = self._used()
                if used + nbytes > self._limit:
                    used = self._make_room(nbytes)
                self._set_used(used + nbytes)
        return is_open

    def _used(self) -> int:
        """Bytes in use by the ledger; more than the limit where it does not say."""
        record = os.pread(self._ledger.fileno(), _RECORD.size, 0)
        used, boot = _RECORD.unpack(record) if len(record) == _RECORD.size else (-1, 0)
        return used if used >= 0 and boot == self._boot else self._limit + 1

    def _make_room(self, nbytes: int) -> int:
        """Bytes in use by a count of the files, of which the oldest are removed if ``nbytes`` more do not fit."""
        files, used = [], 0
        with os.scandir(self._folder) as entries:
            for entry in entries:
                if not entry.name.endswith((".sample", ".tmp")):
                    continue
                try:
                    status = entry.stat()
                except FileNotFoundError:
                    continue
                if entry.name.endswith(".tmp") and time.time() - status.st_mtime > _STALE_S:
                    _remove(entry.path)
                    continue
                used += status.st_size
                if entry.name.endswith(".sample"):
                    files.append((status.st_mtime_ns, status.st_size, entry.path))
        if used + nbytes <= self._limit:
            return used
        for _, size, path in sorted(files):
            if used + nbytes <= _FULL * self._limit:
                break
            # A process that reads the file just now goes on reading it.
            _remove(path)
            used -= size
        return used

    def _set_used(self, used: int) -> None:
        os.pwrite(self._ledger.fileno(), _RECORD.pack(used, self._boot), 0)

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Keep others from the ledger; whether it is open."""
        with self._lock:
            if self._ledger.closed:
                yield False
                return
            fcntl.flock(self._ledger, fcntl.LOCK_EX)
            try:
                yield True
            finally:
                fcntl.flock(self._ledger, fcntl.LOCK_UN)

    def _give_up(self, error: OSError, temporary: Path) -> None:
        self._paused_until = time.monotonic() + _PAUSE_S
        with suppress(OSError):  # a disk that became read-only refuses this, too, even where there is no file
            temporary.unlink()
        if not self._warned:
            self._warned = True
            print(
                f"note: cache folder {self._folder}: {error.strerror}; reading goes on without keeping samples",
                file=sys.stderr,
                flush=True,
            )


def _remove(path: str) -> None:
    with suppress(FileNotFoundError):
        os.unlink(path)


def _boot() -> int:
    """Tells this start of the machine from any other: what was written before a crash need not be there."""
    return xxhash.xxh3_64_intdigest(Path("/proc/sys/kernel/random/boot_id").read_bytes())
