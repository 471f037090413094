"""Who stands over the trainer of each task of a queued job, and sees how it ends.

The trainer is a process of its own, so that one that is killed is still missed. The first task's supervisor decides
what becomes of the job; what the others write into the run's folder tells it who was the first to go.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import submitit

from dist_trainer.job import start_of
from dist_trainer.logs import append, read_log
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import COME_BACK_CODE, ENDS_AT, SIGNALS
from launch.ended.after import Verdict, after, began, ended, health_of, refusal
from launch.ended.cause import Ending, ending, mark_log
from launch.ended.requeue import keep_away, queued_as
from launch.ended.squeue import places
from launch.session import end_with_parent
from launch.snapshot import CONFIG_NAME
from shards.errors import InputError

_LOOK_S = 1.0
_BAD_INPUT = 2
_GRACE_S = 30.0  # for a trainer that knows of a loss to end; one that does not is stuck
_TRIES, _PAUSE_S = 12, 10.0  # a controller that is restarted does not answer for a while
_UNTIL_ENDED_S = 900.0
# A launcher's marks in the environment where the job was queued; Slurm's are the ones that hold.
_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


def supervise(run: RunFolder, snapshot: Path) -> None:
    """Run the trainer of this task, and on the first task see to what comes after it."""
    task = submitit.JobEnvironment()
    # What submitit would do at once when told that the time ends: queue the job again. Here it waits for the save.
    queue_again = signal.getsignal(_signal_of(task))
    first = task.global_rank == 0
    if why := refusal(run.root, os.environ):
        if first:
            _refuse(run, why)
        return
    if first:
        try:
            began(run.root, task.hostnames, task.num_tasks, os.environ)
        except InputError as error:
            _refuse(run, str(error))
    child = _Child(run, snapshot, _environment(snapshot, first))
    if not first:
        code = child.wait()
        if code not in (0, COME_BACK_CODE):
            append(_losses(run), {**_start(), "rank": task.global_rank, "host": _host(), "code": code})
        return
    # A trainer whose peer has died ends by itself, and says whom it missed, once it has not heard of it for so long.
    grace_s = health_of(snapshot / CONFIG_NAME).silent_seconds + _GRACE_S
    end = _until_end(child, run, grace_s)
    for line in end.shown if end.code else ():
        print(line)
    if end.code and shutil.which("scontrol") is None:
        # In a container without Slurm's commands; the batch script outside sees to the rest (`ltx-launch job-left`).
        print(f"ended with code {end.code}: {end.cause}", flush=True)
        sys.exit(end.code)
    _see_to(run, end, task, queue_again)


def _see_to(run: RunFolder, end: Ending, task: submitit.JobEnvironment, queue_again: Any) -> None:
    """Note how the job ended, and let it come back where it shall. `queue_again`: submitit's handler for that."""
    try:
        verdict = after(run.root, end.code, os.environ)
    except InputError as error:
        verdict = Verdict(False, f"not known whether to come back: {error}")
    ended(run.root, end.code, end.cause, verdict, os.environ)
    print(f"ended with code {end.code}: {end.cause}; {verdict.why}" if end.code else verdict.why, flush=True)
    if verdict.again:
        told: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: told.append(number))
        try:
            with _term_waits():
                if not verdict.queued:
                    assert callable(queue_again), "submitit has set a handler"
                    _come_back(task, queue_again)
                keep_away(queued_as(os.environ), verdict.exclude)
        except InputError as error:
            print(f"error: {error}", flush=True)
        else:
            _until_ended(told)
    if end.code:
        sys.exit(end.code)


def _refuse(run: RunFolder, why: str) -> NoReturn:
    """End the job before it begins, for good."""
    ended(run.root, _BAD_INPUT, why, Verdict(False, why), os.environ)
    print(f"error: {why}", flush=True)
    sys.exit(_BAD_INPUT)


class _Child:
    """The trainer's process. Signals that come to this one are passed on to it."""

    def __init__(self, run: RunFolder, snapshot: Path, environ: Mapping[str, str]) -> None:
        self._received: set[int] = set()
        self._process: subprocess.Popen[bytes] | None = None
        for number in SIGNALS:
            signal.signal(number, self._pass_on)
        job, restart = start_of(environ)
        path = run.ranks / f"{job}_{environ['SLURM_PROCID']}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists():
            mark_log(path, job, restart)
        with path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "dist_trainer.train", str(snapshot / CONFIG_NAME)],
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent,
            )
        for early in tuple(self._received):
            self._process.send_signal(early)

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._received.add(number)
        if self._process is not None:
            self._process.send_signal(number)

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code, 85 also where a signal to stop ended it before it could listen; None past the time."""
        assert self._process is not None
        try:
            code = self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return COME_BACK_CODE if -code in self._received else code

    def kill(self) -> None:
        """End a process that is stuck."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()


def end_of(run: Path, environ: Mapping[str, str]) -> dict[str, Any] | None:
    """What the first task has said of how this start of its job ended, and whether it comes back; None: nothing."""
    now = start_of(environ)
    ends = [one for one in read_log(RunFolder(run).jobs) if one.get("event") == "ended"]
    return next((one for one in reversed(ends) if (one.get("job"), one.get("restart")) == now), None)


def _until_end(child: _Child, run: RunFolder, grace_s: float) -> Ending:
    """How the ranks of this start ended. Of many that fail the first is to blame, and bad input before all."""
    stuck_at: float | None = None
    while (code := child.wait(_LOOK_S)) is None:
        if stuck_at is None and _lost(run):
            stuck_at = time.monotonic() + grace_s
        if stuck_at is not None and time.monotonic() > stuck_at:
            child.kill()
            return _explained(_lost(run), run)
    if code not in (0, COME_BACK_CODE):
        # The others end within a moment, and who watches them has to write.
        time.sleep(_LOOK_S)
        return _explained([{"rank": 0, "host": _host(), "code": code}, *_lost(run)], run)
    return ending(run, _start()["job"], code)


def _explained(lost: Sequence[Mapping[str, Any]], run: RunFolder) -> Ending:
    codes = [int(one["code"]) for one in lost]
    code = _BAD_INPUT if _BAD_INPUT in codes else _exit_code(codes[0])
    told = ending(run, _start()["job"], code)
    killed = next((one for one in lost if int(one["code"]) < 0), None)
    if killed is None or code == _BAD_INPUT:
        return told
    how = f"killed by {signal.Signals(-int(killed['code'])).name}"
    return replace(told, cause=f"rank {killed['rank']} ({killed['host']}): {how}")


def _exit_code(code: int) -> int:
    """As a shell gives it: a signal is 128 and its number."""
    return code if code >= 0 else 128 - code


def _losses(run: RunFolder) -> Path:
    """Where each task but the first writes how its trainer ended, if badly."""
    return run.root / "logs" / "lost.jsonl"


def _lost(run: RunFolder) -> list[dict[str, Any]]:
    """Ranks of this start of the job that ended badly."""
    now = _start()
    return [
        one for one in read_log(_losses(run)) if (one["job"], one["restart"]) == (now["job"], now["restart"])
    ]


def _start() -> dict[str, Any]:
    job, restart = start_of(os.environ)
    return {"time": time.time(), "job": job, "restart": restart}


def _host() -> str:
    """This host by the name Slurm has for it."""
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _environment(snapshot: Path, first: bool) -> dict[str, str]:
    """The trainer's: the snapshot's code, and no launcher's marks but Slurm's."""
    environ = {key: value for key, value in os.environ.items() if key not in _LAUNCHERS}
    environ["PYTHONPATH"] = os.pathsep.join([str(snapshot), *filter(None, [environ.get("PYTHONPATH")])])
    environ.setdefault("OMP_NUM_THREADS", environ.get("SLURM_CPUS_PER_TASK", "1"))
    if first:  # which looks at the clock for all
        environ[ENDS_AT] = _ends_at()
    return environ


def _ends_at() -> str:
    """When Slurm will end the job, in seconds since 1970; empty where it will not, or does not say."""
    job = queued_as(os.environ)
    with suppress(InputError, KeyError, ValueError):
        return str(int(datetime.fromisoformat(places([job])[job].end).timestamp()))
    return ""


def _signal_of(task: submitit.JobEnvironment) -> signal.Signals:
    """The signal with which submitit lets Slurm tell of the end."""
    return signal.Signals[f"SIG{task.USR_SIG}"]


@contextmanager
def _term_waits() -> Iterator[None]:
    """SIGTERM is taken after the block, also by commands that it calls: Slurm, which ends all processes of a job
    that is queued again, must cut none of them short.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})


def _come_back(task: submitit.JobEnvironment, queue_again: Callable[[int, None], object]) -> None:
    """Let submitit queue the job again. Raises InputError where Slurm refuses."""
    for tried in range(1, _TRIES + 1):
        # Left by a start that was killed in the midst of this, it would stop submitit.
        pickled = task.paths.submitted_pickle
        pickled.with_name(f"{pickled.name}.save_tmp").unlink(missing_ok=True)
        try:
            queue_again(_signal_of(task), None)
        except SystemExit:  # as it does when the job is queued
            return
        except subprocess.SubprocessError as error:
            if tried == _TRIES:
                raise InputError(f"the job cannot be queued again: {error}") from error
        time.sleep(_PAUSE_S)


def _until_ended(told: Sequence[int]) -> NoReturn:
    """Wait for Slurm to end this job, which is queued again: one that ends by itself might count as done."""
    deadline = time.monotonic() + _UNTIL_ENDED_S
    while not told and time.monotonic() < deadline:
        time.sleep(0.1)
    sys.exit(COME_BACK_CODE)
