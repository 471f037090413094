"""File systems of a given size, for tests of full and of read-only disks."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest


@contextmanager
def small_disk(root: Path, size: str) -> Iterator[Path]:
    """A file system of `size` (64k, 2m) at the new folder `root`; skips where that is not allowed."""
    root.mkdir(parents=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(root)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"a small file system needs a root that may mount: {done.stderr.strip()}")
    try:
        yield root
    finally:
        subprocess.run(["umount", "-l", str(root)], check=True)


def remount(root: Path, option: str) -> None:
    """Change an option of the file system at `root`: ro, rw, size=2m."""
    subprocess.run(["mount", "-o", f"remount,{option}", str(root)], check=True)
