"""Functions run in processes of their own, which a test can kill: forked, so that no import is paid twice."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


class Fork:
    """A child process that runs `act` and ends with 0, with 2 after an InputError, with 1 after another error.

    What it writes to stderr, and the text of its error, go to the file `errors`. It ends with this process. It
    must not compute with torch, whose threads a fork loses: it would wait for them for ever.
    """

    def __init__(self, act: Callable[[], object], errors: Path) -> None:
        self.errors = errors
        self.pid = os.fork()
        self._status: int | None = None
        if self.pid == 0:
            os._exit(_run(act, errors))

    def kill(self, signum: int = signal.SIGKILL) -> None:
        """Send a signal, if it still runs."""
        if self.code is None:
            os.kill(self.pid, signum)

    @property
    def code(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        if self._status is None:
            ended, status = os.waitpid(self.pid, os.WNOHANG)
            if ended:
                self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def wait(self, seconds: float = 30.0) -> int:
        """Its exit code; killed and refused where it takes longer."""
        deadline = time.monotonic() + seconds
        while self.code is None:
            if time.monotonic() > deadline:
                self.kill()
                raise AssertionError(f"still running after {seconds} s: {self.text()}")
            time.sleep(0.002)
        return self._status or 0

    def text(self) -> str:
        """What it wrote to stderr."""
        return self.errors.read_text() if self.errors.exists() else ""


def _run(act: Callable[[], object], errors: Path) -> int:
    # Not left behind by a test run that was killed, nor holding the pipe that somebody reads its output from.
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with open(os.devnull, "r+b") as nothing:
        os.dup2(nothing.fileno(), 0)
        os.dup2(nothing.fileno(), 1)
    # Whatever the test runner does with these is not ours.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    file = open(errors, "a", buffering=1)  # noqa: SIM115
    os.dup2(file.fileno(), 2)
    sys.stderr = file
    try:
        act()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    except KeyboardInterrupt:
        return 130
    except BaseException as error:
        from shards.errors import InputError

        if isinstance(error, InputError):
            print(f"error: {error}", file=sys.stderr)
            return 2
        traceback.print_exc()
        return 1
    return 0
