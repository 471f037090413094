"""Files that are complete or not there: temporary file in the same folder, fsync, rename."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.ENOSYS, errno.EBADF)


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a binary file for writing that takes the name ``path`` only if the block ends without an error.

    An existing ``path`` is replaced in one step; after an error it is untouched and the temporary file is
    gone. An OSError names ``path``.
    """
    # Not the process's number: two machines may share the folder, two threads the process.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            # A full disk does not say which file it was, and nobody knows the temporary one.
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def place(file: Path, target: Path) -> None:
    """Move a finished file of the same disk to ``target``, in one step; missing folders are made."""
    with open(file, "rb") as finished:
        os.fsync(finished.fileno())
    target.parent.mkdir(parents=True, exist_ok=True)
    os.replace(file, target)
    sync_folder(target.parent)


def sync_folder(folder: Path) -> None:
    """Make a rename in ``folder`` durable, where its file system can: some have no such call for folders."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
    finally:
        os.close(descriptor)
