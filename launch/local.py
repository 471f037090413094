"""N training processes on this machine, with the environment every launcher sets."""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from dist_trainer.stop import COME_BACK_CODE

_GRACE_S = 15.0
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1


def local(
    config: Path, overrides: Sequence[str], processes: int, module: str = "dist_trainer.train"
) -> int:
    """Run `python -m MODULE CONFIG ...` in `processes` processes and return the first bad exit code.

    When one fails the others get some seconds to end by themselves, then are stopped; Ctrl-C stops all. USR1, USR2 and
    TERM are passed on: the ranks save and end by themselves, with code 85.
    """
    command = [sys.executable, "-m", module, str(config), *overrides]
    port = _free_port()
    ranks: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: object) -> None:
        for process in ranks:
            process.send_signal(number)

    try:
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, pass_on)
        for rank in range(processes):
            environment = _environment(rank, processes, port)
            ranks.append(subprocess.Popen(command, env=environment, preexec_fn=end_with_parent))
        return _wait(ranks)
    except KeyboardInterrupt:
        for process in ranks:
            process.terminate()
        return 128 + signal.SIGINT
    finally:
        _stop(ranks)


def _environment(rank: int, processes: int, port: int) -> dict[str, str]:
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": processes,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    # One thread, as torchrun: without it every process starts a thread per core.
    return {"OMP_NUM_THREADS": "1", **os.environ, **{key: str(value) for key, value in place.items()}}


def end_with_parent() -> None:
    """In a new process: let the kernel stop it when its launcher is killed, which could not do so itself."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(ranks: list[subprocess.Popen[bytes]]) -> int:
    """Exit code of the first process that fails; 85 where all have ended well and want to come back, else 0."""
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [code for code in codes if code not in (None, 0, COME_BACK_CODE)]
        if failed:
            return failed[0] if failed[0] and failed[0] > 0 else 1
        if None not in codes:
            return max(code or 0 for code in codes)
        time.sleep(0.1)


def _stop(ranks: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _GRACE_S
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()
