"""Processes that end with whoever started them; a command with all that it starts is a session of its own."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

# To a launcher: end now, as by Ctrl-C, which what a shell's script starts with & does not hear.
END_NOW = signal.SIGRTMIN
_ENDING = (signal.SIGTERM, signal.SIGHUP)
_GRACE_S = 40.0  # DeepSpeed's launcher gives its ranks 30 s to save
_LOOK_S = 0.1
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def run(command: Sequence[str], environ: Mapping[str, str]) -> None:
    """Run a command to its end as `started` does. Raises CalledProcessError when it ends badly."""
    with started(command, environ) as process:
        code = process.wait()
    if code:
        raise subprocess.CalledProcessError(code, command)


@contextmanager
def started(command: Sequence[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command that runs while the block does.

    Where the block ends by an exception, Ctrl-C, TERM or HUP, all processes of the command are told to end by TERM, so
    that ranks save, and are killed when they have not ended after a while. TERM and HUP raise SystemExit.
    """
    # What is ignored stays so: nohup ignores HUP.
    heard = [number for number in _ENDING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, _raise_exit) for number in heard}
    process = subprocess.Popen(command, env=environ, start_new_session=True)
    try:
        yield process
    except BaseException:
        _end(process)
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end_with_parent() -> None:
    """In a new process: let the kernel stop it when its launcher is killed, which could not do so itself."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def send(session: int, number: int) -> bool:
    """Send a signal to all processes of a session, zombies aside; whether there were any.

    Launchers put their ranks into process groups of their own, so that the session alone tells whose they are.
    """
    members = list(_members(session))
    for pid in members:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
    return bool(members)


def _end(process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + _GRACE_S
    send(process.pid, signal.SIGTERM)
    while send(process.pid, 0) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
    send(process.pid, signal.SIGKILL)
    process.wait()


def _members(session: int) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended
                # After the name in brackets: state, parent, group, session.
                state, _, _, own = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(own) == session and state != "Z":
                    yield int(entry.name)


def _raise_exit(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)
