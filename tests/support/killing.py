"""A command that is killed again and again, and then left to end."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LONGEST_S = 120.0


def command(*arguments: object) -> list[str]:
    """`ltx-shards ARGUMENTS` as a process."""
    return [sys.executable, "-m", "shards", *map(str, arguments)]


def kill_when(arguments: Sequence[object], true: Callable[[], bool]) -> None:
    """Start `ltx-shards` and kill it, without a chance to clean up, as soon as `true()`."""
    process = subprocess.Popen(
        command(*arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + _LONGEST_S
    try:
        while not true():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline, "nothing to kill it for came about"
            time.sleep(0.002)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def finish(arguments: Sequence[object]) -> str:
    """Run `ltx-shards` to its end; what it printed. Fails where the command does."""
    done = subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=_LONGEST_S)
    assert done.returncode == 0, done.stderr
    return done.stdout
