"""What a rank prints: it may be lost, the run may not."""

from __future__ import annotations

import io
import sys
from typing import Any, TextIO


class _Lasting(io.FileIO):
    """A descriptor to write to; what cannot be written is dropped."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data)
        except OSError:
            return memoryview(data).nbytes


def print_on() -> None:
    """Let this process print on when nobody reads any more, or the disk that takes it is full.

    A launcher that is told to stop may cut its connections to the hosts before it tells the ranks; one that failed at
    its next line would not save.
    """
    sys.stdout, sys.stderr = _lasting(1), _lasting(2)


def _lasting(descriptor: int) -> TextIO:
    file = io.BufferedWriter(_Lasting(descriptor, "w", closefd=False))
    return io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", line_buffering=True)
