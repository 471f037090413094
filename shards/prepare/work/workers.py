"""Who this process is among the workers of a job, and starting several of them on one machine."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from shards.errors import InputError

_LEAVE_S = 2.0  # for a worker to see that the job is done; one that is only just starting may be ended
_GRACE_S = 30.0  # to end when told to: it may be in the middle of a long call
_LIBC = ctypes.CDLL(None)
_PR_SET_PDEATHSIG = 1

_TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
_SRUN = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID")
_ARRAY = ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_COUNT")


@dataclass(frozen=True)
class Worker:
    """One of `count` workers on the same job: its number, and its number on this host, which chooses the GPU."""

    index: int = 0
    count: int = 1
    local: int = 0


ALONE = Worker()


def this_worker(environment: Mapping[str, str], index: int | None, count: int | None) -> Worker | None:
    """The place of this process, from the flags `--worker` and `--workers`, else from what a launcher set.

    Launchers: torchrun (RANK, WORLD_SIZE, LOCAL_RANK), srun (SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID), an array
    (SLURM_ARRAY_TASK_ID, _MIN, _COUNT), each of whose tasks may hold ranks of the former. None where only `count`
    was given, or nothing at all: the caller starts its own processes then. Raises InputError for nonsense.
    """
    if count is not None and count < 1:
        raise InputError(f"--workers {count}: give the number of workers, 1 or more")
    if index is not None:
        if count is None:
            raise InputError(f"--worker {index} needs --workers, the number of all workers")
        if not 0 <= index < count:
            raise InputError(f"--worker {index} is not below --workers {count}: workers count from 0")
        return Worker(index, count, index)
    if count is not None:
        return None
    inner, outer = _rank(environment), _array_task(environment)
    if inner is None and outer is None:
        return None
    rank, task = inner or Worker(), outer or Worker()
    return Worker(task.index * rank.count + rank.index, task.count * rank.count, rank.local)


@contextmanager
def crew(arguments: Sequence[str], count: int) -> Iterator[Worker]:
    """Start `count - 1` processes `python -m shards ARGUMENTS --worker I --workers COUNT`; this one is worker 0.

    They read nothing and what they print is dropped, except errors. One that fails is reported in a line and
    the rest goes on: the others do its work. They end when the block raises, and when this process dies.
    After the block they have some seconds to see that the job is done.
    """
    # What this process does not import from the folder it is called in, they must not either.
    command = [sys.executable, *(["-P"] if sys.flags.safe_path else []), "-m", "shards", *arguments]
    children: list[subprocess.Popen[bytes]] = []
    watching: list[threading.Thread] = []
    leaving = threading.Event()
    try:
        for index in range(1, count):
            # Nothing in the environment differs: a thread count that depended on `count` would change bits.
            child = subprocess.Popen(
                [*command, "--worker", str(index), "--workers", str(count)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                process_group=0,  # Ctrl-C comes to this process alone, which then ends them
                preexec_fn=_end_with(os.getpid()),
            )
            children.append(child)
            watch = threading.Thread(target=_report, args=(child, index, count, leaving), daemon=True)
            watching.append(watch)
            watch.start()
        yield Worker(0, count, 0)
        _wait(children, _LEAVE_S)
    finally:
        leaving.set()
        _end(children)
        for watch in watching:
            watch.join()


def _rank(environment: Mapping[str, str]) -> Worker | None:
    """The rank inside a launch by torchrun or srun."""
    if "RANK" in environment or "WORLD_SIZE" in environment:
        names = _TORCHRUN
    elif "SLURM_STEP_ID" in environment and "SLURM_PROCID" in environment:
        # Without a step it is the batch script itself, which is no rank though it has a task's variables.
        names = _SRUN
    else:
        return None
    rank, size = (_number(environment, name, names) for name in names[:2])
    if not 0 <= rank < size:
        raise InputError(f"environment: {names[0]}={rank} is not below {names[1]}={size}")
    local = 0 if size == 1 and names[2] not in environment else _number(environment, names[2], names)
    return Worker(rank, size, local)


def _array_task(environment: Mapping[str, str]) -> Worker | None:
    """The number of an array task. In an array with gaps two may share one, which costs them a little time."""
    if "SLURM_ARRAY_TASK_ID" not in environment:
        return None
    task, first, count = (_number(environment, name, _ARRAY) for name in _ARRAY)
    if count < 1 or task < first:
        raise InputError("environment: " + _seen(environment, _ARRAY) + " are not a task of an array")
    return Worker((task - first) % count, count)


def _number(environment: Mapping[str, str], name: str, names: Sequence[str]) -> int:
    text = environment.get(name, "")
    if not (text.isascii() and text.isdigit()):
        raise InputError(
            f"environment: the launcher must set {', '.join(names)} to whole numbers; "
            f"found {_seen(environment, names)}"
        )
    return int(text)


def _seen(environment: Mapping[str, str], names: Sequence[str]) -> str:
    return ", ".join(f"{name}={environment.get(name, '(unset)')}" for name in names)


def _end_with(parent: int) -> Callable[[], None]:
    def before_exec() -> None:
        """Let the kernel stop a worker whose parent was killed, which could not do so itself."""
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(1)  # it was killed before that

    return before_exec


def _report(child: subprocess.Popen[bytes], index: int, count: int, leaving: threading.Event) -> None:
    """Wait for a worker and say how it ended where that was not as it should."""
    code = child.wait()
    if code == 0 or leaving.is_set():
        return
    how = f"was killed by {_signal_name(-code)}" if code < 0 else f"failed with exit code {code}"
    # In one piece: the children write to the same place.
    sys.stderr.write(f"worker {index} of {count} (process {child.pid}) {how}; the others go on\n")
    sys.stderr.flush()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _wait(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    """Until all have ended, or the time is over."""
    deadline = time.monotonic() + seconds
    for child in children:
        try:
            child.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            return


def _end(children: Sequence[subprocess.Popen[bytes]]) -> None:
    for child in children:
        child.terminate()
    _wait(children, _GRACE_S)
    for child in children:
        child.kill()
        child.wait()
