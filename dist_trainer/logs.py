"""Logs of a run, a JSON record on each line."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from shards.atomic import replacing


class LineLog:
    """A JSON-lines file that a resumed run goes on from: lines of steps after the checkpoint are dropped first."""

    def __init__(self, path: Path, after_step: int) -> None:
        """Open for appending, keeping only whole lines with `step` <= `after_step`."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.writelines(_lines_until(path, after_step))
        self._file: TextIO = path.open("a", encoding="utf-8")
        self._synced = True

    def write(self, record: dict[str, Any]) -> None:
        """Append one line and hand it to the operating system."""
        self._synced = False
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Make the lines written so far survive a power cut; costs nothing where that is done."""
        if not self._synced:
            os.fsync(self._file.fileno())
            self._synced = True

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def records(path: Path, until_step: int) -> list[dict[str, Any]]:
    """The records of a log, of steps up to `until_step`; none where there is no such file."""
    return [json.loads(line) for line in _lines_until(path, until_step)]


def _lines_until(path: Path, step: int) -> Iterator[bytes]:
    """Lines of steps up to `step`, up to the first that a kill or a power cut left broken."""
    if not path.is_file():
        return
    with path.open("rb") as file:
        for line in file:
            try:
                found = int(json.loads(line)["step"])
            except (KeyError, TypeError, ValueError):
                return
            if not line.endswith(b"\n"):
                return
            if found <= step:
                yield line


def append(path: Path, record: dict[str, Any]) -> None:
    """Append one record to a log that several processes write, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, (json.dumps(record) + "\n").encode())
    finally:
        os.close(descriptor)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The records of a log that `append` wrote; lines that a kill left broken are passed over."""
    found: list[dict[str, Any]] = []
    if not path.is_file():
        return found
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(json.JSONDecodeError):
            record = json.loads(line)
            if isinstance(record, dict):
                found.append(record)
    return found
