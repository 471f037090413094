"""Going on with a run that has stopped, on as many nodes as are wanted now."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from dist_trainer.config import RunConfig, load
from dist_trainer.logs import read_log
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import STOP_NAME
from launch.ended.squeue import places
from launch.local import train
from launch.queueing.forecast import Forecast, forecast
from launch.queueing.resources import Resources
from launch.queueing.submit import Submission, check_not_queued, submit
from launch.runs import is_held, jobs_of, settings_of
from shards.errors import InputError


class AllDone(InputError):
    """All steps of the run are trained."""


def let_wait(run: RunFolder) -> str:
    """Take STOP away where a job of the run waits in the queue, which then goes on; its number, "" where none does."""
    stop = run.root / STOP_NAME
    if not stop.exists():
        return ""
    waiting = [job for job, place in places(jobs_of(run)).items() if place.waits]
    if waiting:
        stop.unlink(missing_ok=True)
    return ", ".join(waiting)


def resume(run: RunFolder, asked: Mapping[str, Any], overrides: Sequence[str]) -> tuple[Forecast, Submission]:
    """Queue a run again, with the resources of its last job and those of `asked`, by their names in Resources.

    STOP is taken away. Raises AllDone where all its steps are done, InputError where it trains or waits already, cannot
    go on with the settings `overrides`, or it is not known what to ask for.
    """
    check_not_queued(run.root)
    known = [
        record["resources"]
        for record in read_log(run.jobs)
        if record.get("event") == "submitted" and record.get("resources")
    ]
    if not known and "gpus_per_node" not in asked:
        raise InputError(
            f"{run.root}: none of its jobs was queued by ltx-launch, so say what to ask for: --gpus-per-node 8 --nodes "
            "4 --time 24:00:00 (--partition ...); or submit its script again once there is no file STOP in it, or use "
            "--local"
        )
    resources = replace(Resources.read(known[-1]) if known else Resources(), **asked)
    with _as_queued(run), _going_on(run, overrides) as config:
        told = forecast(config, resources.ranks)
        return told, submit(config, resources)


def resume_here(run: RunFolder, processes: int, overrides: Sequence[str]) -> int:
    """Go on with a run in `processes` processes on this machine; its exit code. Raises InputError as `resume`."""
    check_not_queued(run.root)
    with _as_queued(run):
        with _going_on(run, overrides) as config:
            print(forecast(config, processes), flush=True)
        settings = settings_of(run)
        assert settings is not None, "the config was read"
        return train(settings, [*overrides, f"output_dir={run.root}"], processes, run)


@contextmanager
def _as_queued(run: RunFolder) -> Iterator[None]:
    """Inside the block be in the folder that the run was queued from, if it is still there: paths are meant from it."""
    folders = [str(record["folder"]) for record in read_log(run.jobs) if record.get("folder")]
    if not folders or not Path(folders[-1]).is_dir() or Path(folders[-1]).samefile(Path.cwd()):
        yield
        return
    print(f"paths in its settings are meant from {folders[-1]}, where it was queued", flush=True)
    with chdir(folders[-1]):
        yield


@contextmanager
def _going_on(run: RunFolder, overrides: Sequence[str]) -> Iterator[RunConfig]:
    """The config to go on with. STOP is away inside the block, and back again after it where that fails."""
    if is_held(run):
        raise InputError(
            f"{run.root}: a process trains in it; stop it first with `ltx-launch stop {run.root}`"
        )
    settings = settings_of(run)
    if settings is None:
        raise InputError(
            f"{run.root}: has no config.yaml, as it has not begun; start it with `ltx-launch slurm`"
        )
    config = load(settings, [*overrides, f"output_dir={run.root}"])
    if run.steps_done() >= config.optimization.steps:
        raise AllDone(
            f"{run.root}: all {run.steps_done()} steps are done; give optimization.steps=MORE to go on"
        )
    stop: Path = run.root / STOP_NAME
    there = stop.exists()
    stop.unlink(missing_ok=True)
    try:
        yield config
    except BaseException:
        if there:
            stop.touch()
        raise
