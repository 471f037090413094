"""What becomes of a job that has ended: whether it comes back, decided from what the run's folder says."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.config import load
from dist_trainer.config.health import HealthConfig
from dist_trainer.rundir import RunFolder, append, read_log
from dist_trainer.stop import COME_BACK_CODE
from launch.requeue import place, queued_as
from shards.errors import InputError

_MOST_STARTS = 10  # without a new checkpoint, whatever ended them
_TAIL_BYTES = 1 << 16


@dataclass(frozen=True)
class Verdict:
    """Whether a job comes back, and why, in one line.

    `queued`: Slurm has queued it again by itself. `exclude`: hosts that failed this run's trial, to keep away from.
    """

    again: bool
    why: str
    queued: bool = False
    exclude: tuple[str, ...] = ()


def after(run: Path, code: int, environ: Mapping[str, str]) -> Verdict:
    """Whether the job of `environ` comes back after its ranks ended with `code`. Changes nothing.

    Code 85 and crashes come back, but not for ever without a new checkpoint; what is done, and bad input, do not. Nor
    does a job that is being cancelled. Raises InputError when Slurm does not answer.
    """
    if code == 0:
        return Verdict(False, "ended well")
    if code == 2:
        return Verdict(False, "bad input, which no other start would change; correct it and submit again")
    folder, (job, restart) = RunFolder(run), start_of(environ)
    exclude = bad_hosts(folder)
    if "SLURM_JOB_ID" in environ:
        now = place(queued_as(environ))
        if now.restarts > restart:
            return Verdict(True, "Slurm itself has queued it again", queued=True, exclude=exclude)
        if not now.ours:
            return Verdict(False, "the job is being cancelled; submit again to go on")
    step = _newest_step(folder)
    idle = [
        record
        for record in read_log(folder.jobs)
        if record.get("event") == "ended" and record.get("job") == job and record.get("step") == step
    ]
    since = f"without a new checkpoint since step {step}" if step else "without a first checkpoint"
    if len(idle) >= _MOST_STARTS:
        return Verdict(False, f"started {len(idle) + 1} times {since}; look at why, then submit again")
    excused = {(record.get("job"), record.get("restart")) for record in read_log(folder.bad_nodes)}
    if code == COME_BACK_CODE:
        return Verdict(True, "saved; it comes back", exclude=exclude)
    if (job, restart) in excused:
        return Verdict(True, f"it comes back on other nodes than {', '.join(exclude)}", exclude=exclude)
    crashes = 1 + sum(
        record.get("code") not in (0, COME_BACK_CODE) and (job, record.get("restart")) not in excused
        for record in idle
    )
    most = _max_restarts(folder)
    if crashes > most:
        why = f"crashed {crashes} times {since} (health.max_restarts: {most}); correct the cause, then submit again"
        return Verdict(False, why)
    return Verdict(True, f"crash {crashes} {since}, of at most {most}; it comes back", exclude=exclude)


def ended(run: Path, code: int, cause: str, verdict: Verdict, environ: Mapping[str, str]) -> None:
    """Note in the run's log of jobs how this start ended."""
    folder, (job, restart) = RunFolder(run), start_of(environ)
    record = {
        "time": time.time(),
        "event": "ended",
        "job": job,
        "restart": restart,
        "code": code,
        "step": _newest_step(folder),
        "reached": _last_step(folder.metrics),
        "again": verdict.again,
        "cause": cause,
    }
    append(folder.jobs, record)


def start_of(environ: Mapping[str, str]) -> tuple[str, int]:
    """The job this process belongs to ("local" outside Slurm), and how often it was queued again before this start."""
    return environ.get("SLURM_JOB_ID", "local"), int(environ.get("SLURM_RESTART_COUNT") or 0)


def bad_hosts(folder: RunFolder) -> tuple[str, ...]:
    """Hosts that failed this run's trial, by the names Slurm has for them."""
    found = {str(record.get("host", "")).partition(".")[0] for record in read_log(folder.bad_nodes)}
    return tuple(sorted(found - {""}))


def _newest_step(folder: RunFolder) -> int:
    return max(complete_steps(folder.checkpoints), default=0)


def _last_step(metrics: Path) -> int:
    """The last step that was trained; 0 where there is none."""
    try:
        with metrics.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - _TAIL_BYTES))
            lines = log.read().decode(errors="replace").splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        try:
            record: dict[str, Any] = json.loads(line)
            return int(record["step"])
        except (json.JSONDecodeError, KeyError, TypeError, ValueError):
            continue  # broken off by a kill
    return 0


def _max_restarts(folder: RunFolder) -> int:
    """What the run's settings say; their default where no start came far enough to write them."""
    try:
        return load(folder.config).health.max_restarts
    except InputError:
        return HealthConfig().max_restarts
