"""The run's folder as this host sees it: that it can be written, how fast, and that all hosts have the same one."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from shards.errors import InputError

_FOLDER = ".preflight"
_BYTES = 8 << 20
_OLD_S = 3600.0  # of what another launch may still use


def try_writing(run: Path, token: str, rank: int) -> dict[str, Any]:
    """Write a file of this rank's into the run's folder, down to the disk; bytes written per second.

    Raises InputError when that cannot be done.
    """
    if run.exists() and not run.is_dir():
        raise InputError(f"output_dir: {run}: is a file; choose a folder")
    try:
        place = run / _FOLDER / token
        place.mkdir(parents=True, exist_ok=True)
        # A disk that is nearly full shall not get full by this.
        content = os.urandom(min(_BYTES, shutil.disk_usage(place).free // 8))
        began = time.perf_counter()
        with (place / f".{rank}").open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        os.rename(place / f".{rank}", place / str(rank))
        return {"speed": len(content) / (time.perf_counter() - began)}
    except OSError as error:
        raise InputError(f"output_dir: {run}: cannot be written: {error}; choose another folder") from error


def unseen(run: Path, token: str, ranks: Sequence[int], limit: float) -> list[int]:
    """Which of `ranks` wrote a file that does not appear here within `limit` seconds."""
    deadline = time.monotonic() + limit
    waiting = list(ranks)
    while True:
        waiting = [rank for rank in waiting if not (run / _FOLDER / token / str(rank)).is_file()]
        if not waiting or time.monotonic() > deadline:
            return waiting
        time.sleep(0.1)


def clear(run: Path, token: str, existed: bool) -> None:
    """Take away what the trial wrote, what killed ones left, and the run's folder where it did not exist before."""
    with suppress(OSError):
        for place in (run / _FOLDER).iterdir():
            if place.name == token or time.time() - place.stat().st_mtime > _OLD_S:
                shutil.rmtree(place, ignore_errors=True)
        (run / _FOLDER).rmdir()
        if not existed:
            run.rmdir()
