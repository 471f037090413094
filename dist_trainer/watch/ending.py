"""Whether this process was told to end, known to a thread while the main one is in a call that does not return."""

from __future__ import annotations

import os
import signal
from contextlib import suppress


class Ending:
    """Hears of SIGTERM as long as that has a handler in Python; made and closed by the main thread."""

    def __init__(self) -> None:
        self._told = False
        self._read, self._write = os.pipe()
        for end in (self._read, self._write):
            os.set_blocking(end, False)
        # The interpreter writes a signal's number there at once; its handler waits for the main thread.
        signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)

    def told(self) -> bool:
        """Whether SIGTERM has come."""
        with suppress(OSError):
            self._told |= signal.SIGTERM in os.read(self._read, 4096)
        return self._told

    def close(self) -> None:
        """Hear no more."""
        signal.set_wakeup_fd(-1)
        for end in (self._read, self._write):
            os.close(end)
