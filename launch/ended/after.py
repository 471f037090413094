"""What becomes of a job that has ended: whether it comes back, decided from what the run's folder says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.config import load
from dist_trainer.config.health import HealthConfig
from dist_trainer.job import LOCAL, start_of
from dist_trainer.logs import append, read_log
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import COME_BACK_CODE
from launch.ended.requeue import gone, place, queued_as
from launch.ended.tail import last_step
from shards.errors import InputError

_MOST_STARTS = 10  # without a new checkpoint, whatever ended them
_MOST_BEGINS = 2 * _MOST_STARTS  # the same, where a start takes its node along and cannot say how it ended


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
    exclude = to_avoid(folder)
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
    kept = f" and {told}" if (told := kept_away(folder, exclude)) else ""
    if code == COME_BACK_CODE:
        return Verdict(True, f"it comes back{kept}", exclude=exclude)
    if (job, restart) in excused:
        return Verdict(True, f"a node failed its trial; it comes back{kept}", exclude=exclude)
    crashes = 1 + sum(
        record.get("code") not in (0, COME_BACK_CODE) and (job, record.get("restart")) not in excused
        for record in idle
    )
    most = health_of(folder.config).max_restarts
    if crashes > most:
        why = f"crashed {crashes} times {since} (health.max_restarts: {most}); correct the cause, then submit again"
        return Verdict(False, why)
    return Verdict(True, f"crash {crashes} {since}, of at most {most}; it comes back{kept}", exclude=exclude)


def refusal(run: Path, environ: Mapping[str, str]) -> str:
    """Why this start of a job may not begin; empty where it may. Changes nothing.

    A start that takes its node along does not come to `after`, and Slurm queues its job again by itself, for ever.
    """
    folder, (job, restart) = RunFolder(run), start_of(environ)
    step = _newest_step(folder)
    idle = [
        record
        for record in read_log(folder.jobs)
        if record.get("event") == "began"
        and (record.get("job"), record.get("step")) == (job, step)
        and record.get("restart") != restart
    ]
    if len(idle) < _MOST_BEGINS:
        return ""
    since = f"since step {step}" if step else "at all"
    return (
        f"job {job} began {len(idle)} times without a new checkpoint {since}; look at why, then submit again"
    )


def began(run: Path, nodes: Sequence[str], ranks: int, environ: Mapping[str, str]) -> None:
    """Note in the run's log of jobs that this start begins. Raises InputError where the log cannot be written."""
    folder, (job, restart) = RunFolder(run), start_of(environ)
    record = {"time": time.time(), "event": "began", "job": job, "restart": restart}
    try:
        append(folder.jobs, {**record, "nodes": list(nodes), "ranks": ranks, "step": _newest_step(folder)})
    except OSError as error:
        raise InputError(
            f"output_dir: {folder.root}: cannot be written: {error}; choose another folder"
        ) from error


def ended(run: Path, code: int, cause: str, verdict: Verdict, environ: Mapping[str, str]) -> None:
    """Note in the run's log of jobs how this start ended; where it cannot be written (a full disk), say so."""
    folder, (job, restart) = RunFolder(run), start_of(environ)
    record = {
        "time": time.time(),
        "event": "ended",
        "job": job,
        "restart": restart,
        "code": code,
        "step": _newest_step(folder),
        "reached": last_step(folder.metrics),
        "again": verdict.again,
        "cause": cause,
        "why": verdict.why,
    }
    try:
        append(folder.jobs, record)
    except OSError as error:
        print(
            f"error: {folder.jobs}: cannot be written: {error}; how this start ended is not noted", flush=True
        )


def bad_hosts(folder: RunFolder) -> tuple[str, ...]:
    """Hosts that failed this run's trial, by the names Slurm has for them.

    These are the names its jobs began with, with a domain or without. Any other (a host that trained outside Slurm)
    Slurm would not know, and refuse all of them.
    """
    starts = [record for record in read_log(folder.jobs) if record.get("event") == "began"]
    named = {str(node) for record in starts if record.get("job") != LOCAL for node in record.get("nodes", [])}
    bad = {str(record.get("host", "")) for record in read_log(folder.bad_nodes) if record.get("job") != LOCAL}
    short = {host.partition(".")[0] for host in bad - named}
    return tuple(sorted(name for name in named if name in bad or name.partition(".")[0] in short))


def to_avoid(folder: RunFolder) -> tuple[str, ...]:
    """The bad hosts without those that the cluster has no more: of a list that names one Slurm takes none."""
    bad = bad_hosts(folder)
    unknown = gone(bad)
    return tuple(host for host in bad if host not in unknown)


def kept_away(folder: RunFolder, hosts: Sequence[str]) -> str:
    """Which hosts a run keeps away from, and how to have them back; of others that failed, why not. Empty: none did."""
    told = []
    if hosts:
        told.append(
            f"keeps away from {', '.join(hosts)}, where its trial failed, and waits for others; to have one back "
            f"delete its lines in {folder.bad_nodes}"
        )
    if others := [host for host in bad_hosts(folder) if host not in hosts]:
        told.append(f"need not keep away from {', '.join(others)}, not in the cluster any more")
    return ", and ".join(told)


def _newest_step(folder: RunFolder) -> int:
    return max(complete_steps(folder.checkpoints), default=0)


def health_of(config: Path) -> HealthConfig:
    """What a run's resolved settings say; the defaults where no start came far enough to write them."""
    try:
        return load(config).health
    except InputError:
        return HealthConfig()
