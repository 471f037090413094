"""Asking runs to save, or to stop for good, and waiting until they have."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

from dist_trainer.job import LOCAL
from dist_trainer.logs import read_log
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import SAVE_NAME, STOP_NAME
from launch.ended.asking import ask_slurm
from launch.ended.requeue import Place
from launch.ended.squeue import places
from launch.ended.tail import last_step
from launch.runs import is_held, jobs_of
from launch.session import END_NOW
from shards.errors import InputError

Ask = Literal["save", "stop", "now"]
_LOOK_S = 2.0


def ask(runs: Sequence[RunFolder], what: Ask) -> Iterator[str]:
    """Ask runs to `save` and go on, to `stop` for good after a save, or to end `now`; lines that say what was done.

    Raises InputError at the end where one is asked to save and nothing trains in it, or it cannot be asked.
    """
    stages = {run.root: _stages(run) for run in runs}
    of_stages = (job for stage in stages.values() for jobs in stage.values() for job in jobs)
    found = places([*(job for run in runs for job in jobs_of(run)), *of_stages])
    refused = []
    for run in runs:
        try:
            told = _ask(run, what, _known(run, found), _live(stages[run.root], found))
        except InputError as error:
            refused.append(str(error))
            continue
        yield from told if len(runs) == 1 else [f"{run.root.name}: {'; '.join(told)}"]
    if refused:
        raise InputError("; ".join(refused))


def _ask(run: RunFolder, what: Ask, known: Mapping[str, Place], stage: tuple[str, str] | None) -> list[str]:
    live = is_held(run) or any(place.runs for place in known.values())
    if not live and run.done.is_file():
        return [f"{run.root}: all {run.steps_done()} steps are done; there is nothing to stop"]
    if what == "save":
        if not live:
            raise InputError(f"{run.root}: nothing trains in it now, so there is nothing to save")
        _touch(run.root / SAVE_NAME)
        return ["asked to save after the step it is in, and to go on"]
    _touch(run.root / STOP_NAME)
    told = [f"wrote {run.root / STOP_NAME}"]
    if what == "now":
        told += _end(run, known)
    elif live:
        told.append("it saves after the step it is in, and stops for good")
    else:
        told.append("nothing trains in it now")
    if what == "stop":
        told += [_of_waiting(job, place) for job, place in known.items() if place.waits]
    if stage:
        told.append(_of_stage(*stage, now=what == "now"))
    return told


def _known(run: RunFolder, found: Mapping[str, Place]) -> dict[str, Place]:
    """What is known of the jobs of a run. The task of an array has two names, and is here by one of them."""
    own: dict[int, str] = {}
    for job in jobs_of(run):
        if job in found:
            own.setdefault(id(found[job]), job)
    return {job: found[job] for job in own.values()}


def wait(runs: Sequence[RunFolder], what: Ask, limit_s: float, say: Callable[[str], None]) -> None:
    """Return when the runs have done what was asked. Raises InputError when one has not in `limit_s` seconds.

    `say` hears what is waited for.
    """
    deadline = time.monotonic() + limit_s
    while late := _late(runs, what):
        run, reason = late[0]
        if time.monotonic() > deadline:
            more = f" (and {len(late) - 1} others)" if len(late) > 1 else ""
            raise InputError(
                f"{run.root}: after {limit_s / 60:.0f} minutes {reason}{more}; see `ltx-launch logs {run.root}`"
            )
        name = f"{run.root.name}: " if len(runs) > 1 else ""
        say(f"{name}{reason} (step {last_step(run.metrics)})")
        time.sleep(_LOOK_S)


def _late(runs: Sequence[RunFolder], what: Ask) -> list[tuple[RunFolder, str]]:
    """The runs that have not done what was asked, and why they have not."""
    if what == "save":
        return [(run, "it has not saved yet") for run in runs if (run.root / SAVE_NAME).exists()]
    found, late = places(job for run in runs for job in jobs_of(run)), []
    for run in runs:
        running = [job for job, place in _known(run, found).items() if place.runs]
        if running:
            late.append((run, f"job {', '.join(running)} still runs"))
        elif is_held(run):
            late.append((run, "a process still trains in it"))
    return late


def _of_waiting(job: str, place: Place) -> str:
    why = f" ({place.reason})" if place.reason else ""
    return f"job {job} waits in the queue{why}: it would only find STOP and end; `scancel {job}` takes it out"


def _stages(run: RunFolder) -> dict[str, list[str]]:
    """Jobs that make and check the dataset of a run that was queued as a pipeline, by stage, in their order."""
    queued = [record["stages"] for record in read_log(run.jobs) if record.get("stages")]
    return queued[-1] if queued else {}


def _live(stages: Mapping[str, list[str]], found: Mapping[str, Place]) -> tuple[str, str] | None:
    """The first stage that has not ended, and the number of its job or array."""
    for name, jobs in stages.items():
        if any(found[job].waits or found[job].runs for job in jobs if job in found):
            return name, jobs[0].partition("_")[0]
    return None


def _of_stage(name: str, job: str, now: bool) -> str:
    """What becomes of the stage of a pipeline that has not ended; Slurm takes out by itself what waits for it."""
    if now:
        _scancel(job)
        return f"cancelled job {job} ({name}): what is complete of the dataset is kept"
    return f"job {job} ({name}) goes on with the dataset; `scancel {job}` ends it, and takes out what waits for it"


def _end(run: RunFolder, known: Mapping[str, Place]) -> list[str]:
    """End the jobs of a run, waiting ones too, or its launcher on this machine."""
    told = []
    for job, place in known.items():
        if place.runs or place.waits:
            _scancel(job)
            lost = ": what was trained since the last checkpoint is lost" if place.runs else ""
            told.append(f"cancelled job {job}{lost}")
    if not told and is_held(run):
        told.append(_interrupt(run))
    return told or ["nothing trains in it now"]


def _scancel(job: str) -> None:
    if (answer := ask_slurm("scancel", job)).code:
        raise InputError(f"scancel {job}: {answer.error}")


def _interrupt(run: RunFolder) -> str:
    """End the launcher of this machine that trains in the folder, as Ctrl-C does."""
    began = [
        record
        for record in read_log(run.jobs)
        if record.get("event") == "began" and record.get("job") == LOCAL
    ]
    host, pid = (began[-1]["nodes"][0], int(began[-1]["pid"])) if began else ("", 0)
    if not pid or host != socket.gethostname() or not _is_launcher(pid):
        where = f" on {host}" if host else ""
        return f"what trains in it was not started by ltx-launch on this machine; end it{where} yourself"
    with suppress(ProcessLookupError):
        os.kill(pid, END_NOW)
    return f"interrupted its launcher, process {pid}: it has 15 s to end"


def _is_launcher(pid: int) -> bool:
    """Whether a process is still one of ours: numbers are used again."""
    with suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return any(b"launch" in word for word in words)
    return False


def _touch(path: Path) -> None:
    try:
        path.touch()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error}") from error
