"""A command that is killed again and again, and then left to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_LONGEST_S = 120.0
_OURS = ("OMP_", "RANK", "WORLD_SIZE", "LOCAL_RANK", "SLURM_")


def command(*arguments: object) -> list[str]:
    """`ltx-shards ARGUMENTS` as a process."""
    return [sys.executable, "-m", "shards", *map(str, arguments)]


def start(arguments: Sequence[object], **environment: str) -> subprocess.Popen[str]:
    """Start `ltx-shards` where neither this process nor a launcher arranged threads and ranks, but `environment`."""
    plain = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    return subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env={**plain, **environment},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and stderr of a process that ends by itself."""
    _, said = process.communicate(timeout=_LONGEST_S)
    return process.returncode, said


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


def children(pid: int) -> list[int]:
    """Numbers of the processes that process `pid` started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def folder_bytes(root: Path) -> dict[str, bytes]:
    """All files of a dataset, but the notes of the job that made it."""
    paths = [path for path in root.rglob("*") if path.is_file() and ".encode" not in path.parts]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}
