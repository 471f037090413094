"""The end of a log that may be long, and may be written at this moment; and what comes after it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

_BYTES = 1 << 17


def tail(path: Path) -> list[str]:
    """The last lines of a log with their line ends, the first perhaps cut; none where there is no such file."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _BYTES))
            return log.read().decode(errors="replace").splitlines(keepends=True)
    except OSError:
        return []


def recent_steps(metrics: Path, most: int) -> list[dict[str, Any]]:
    """The records of the last steps, `most` at most; lines that are being written, or broken, are passed over."""
    found: list[dict[str, Any]] = []
    for line in tail(metrics)[-most - 1 :]:
        try:
            record = json.loads(line)
            int(record["step"])
        except (ValueError, KeyError, TypeError):
            continue
        if line.endswith("\n"):
            found.append(record)
    return found[-most:]


def last_step(metrics: Path) -> int:
    """The last step that was trained; 0 before the first."""
    recent = recent_steps(metrics, 1)
    return int(recent[-1]["step"]) if recent else 0


class Tail:
    """A log from some point on, as it grows."""

    def __init__(self, path: Path, start: int = 0) -> None:
        self.path, self._at = path, start

    def read(self, rest: bool = False) -> str:
        """What came since: whole lines (those of a progress bar too), or also the `rest` that may still grow."""
        try:
            with self.path.open("rb") as log:
                log.seek(self._at)
                data = log.read()
        except OSError:
            return ""
        if not rest:
            data = data[: max(data.rfind(b"\n"), data.rfind(b"\r")) + 1]
        self._at += len(data)
        return data.decode(errors="replace")
