"""N training processes on this machine, with the environment every launcher sets."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.job import LOCAL
from dist_trainer.logs import append, read_log
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import COME_BACK_CODE
from launch.ended.after import Verdict, ended
from launch.ended.cause import ending, mark
from launch.ended.tail import Tail
from launch.runs import is_held
from launch.session import END_NOW, end_with_parent
from shards.errors import InputError

_GRACE_S = 15.0
_INTERRUPTED = 128 + signal.SIGINT


def train(config: Path, overrides: Sequence[str], processes: int, folder: RunFolder) -> int:
    """Run `local` for the run in `folder`: what each rank prints goes to a log of its own there, and is shown here too.

    The start and the end are noted in the run's log of jobs. Raises InputError where the folder cannot be written,
    or another launch trains in it.
    """
    if is_held(folder):
        raise InputError(
            f"output_dir: {folder.root}: another launch is training in this folder; stop it first, or choose "
            "another folder"
        )
    restart = sum(
        record.get("event") == "began" and record.get("job") == LOCAL for record in read_log(folder.jobs)
    )
    start = {"job": LOCAL, "restart": restart}
    place = {"nodes": [socket.gethostname()], "ranks": processes, "pid": os.getpid()}
    saved = max(complete_steps(folder.checkpoints), default=0)
    try:
        folder.ranks.mkdir(parents=True, exist_ok=True)
        mark(folder, LOCAL, restart)
        append(folder.jobs, {"time": time.time(), "event": "began", **start, **place, "step": saved})
    except OSError as error:
        raise InputError(
            f"output_dir: {folder.root}: cannot be written: {error}; choose another folder"
        ) from error
    logs = [folder.ranks / f"{LOCAL}_{rank}.log" for rank in range(processes)]
    code = local(config, overrides, processes, logs=logs)
    cause = "interrupted" if code == _INTERRUPTED else ending(folder, LOCAL, code).cause
    # Nothing starts it again here.
    ended(folder.root, code, cause, Verdict(False, ""), {"SLURM_RESTART_COUNT": str(restart)})
    return code


def local(
    config: Path,
    overrides: Sequence[str],
    processes: int,
    module: str = "dist_trainer.train",
    logs: Sequence[Path] | None = None,
) -> int:
    """Run `python -m MODULE CONFIG ...` in `processes` processes and return the first bad exit code.

    When one fails the others get some seconds to end by themselves, then are stopped; Ctrl-C stops all. USR1, USR2 and
    TERM are passed on: the ranks save and end by themselves, with code 85. With `logs`, a file for each rank, what a
    rank prints is appended there, and shown from there: the ranks print on where this process is killed.
    """
    command = [sys.executable, "-m", module, str(config), *overrides]
    port = _free_port()
    ranks: list[subprocess.Popen[bytes]] = []
    tails = [Tail(log, log.stat().st_size if log.exists() else 0) for log in logs or ()]
    told: set[int] = set()

    def pass_on(number: int, frame: object) -> None:
        told.add(number)
        for process in ranks:
            process.send_signal(number)

    try:
        signal.signal(END_NOW, signal.default_int_handler)
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, pass_on)
        for rank in range(processes):
            environment = _environment(rank, processes, port)
            ranks.append(_start(command, environment, logs[rank] if logs else None))
            for early in tuple(told):  # came before this rank was there to hear it
                ranks[-1].send_signal(early)
        return _wait(ranks, tails, told)
    except KeyboardInterrupt:
        for process in ranks:
            process.terminate()
        return _INTERRUPTED
    finally:
        _stop(ranks)
        _show(tails, rest=True)


def _start(command: Sequence[str], environ: dict[str, str], log: Path | None) -> subprocess.Popen[bytes]:
    if log is None:
        return subprocess.Popen(command, env=environ, preexec_fn=end_with_parent)
    with log.open("ab") as file:
        return subprocess.Popen(
            command,
            env={"PYTHONUNBUFFERED": "1", **environ},
            stdout=file,
            stderr=subprocess.STDOUT,
            preexec_fn=end_with_parent,
        )


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


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(ranks: list[subprocess.Popen[bytes]], tails: list[Tail], told: set[int]) -> int:
    """Exit code of the first process that fails; 85 where all have ended well and want to come back, else 0.

    One that a signal of those `told` ended could not listen yet: it wants to come back too.
    """
    while True:
        found = [rank.poll() for rank in ranks]
        codes = [COME_BACK_CODE if code is not None and -code in told else code for code in found]
        _show(tails)
        failed = [code for code in codes if code not in (None, 0, COME_BACK_CODE)]
        if failed:
            return failed[0] if failed[0] and failed[0] > 0 else 1
        if None not in codes:
            return max(code or 0 for code in codes)
        time.sleep(0.1)


def _show(tails: list[Tail], rest: bool = False) -> None:
    """Print what came to the ranks' logs since; with `rest`, also what has no end of line."""
    with suppress(OSError):  # a terminal that is gone ends no training
        for tail in tails:
            sys.stdout.buffer.write(tail.read(rest).encode())
        sys.stdout.flush()


def _stop(ranks: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + _GRACE_S
    for rank in ranks:
        try:
            rank.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            rank.kill()
            rank.wait()
