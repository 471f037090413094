"""Training runs into the queue: their code and config are kept, their job is written into each run's log."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from dist_trainer.config import RunConfig
from dist_trainer.logs import append
from dist_trainer.rundir import RunFolder
from launch import snapshot
from launch.ended.after import to_avoid
from launch.ended.squeue import places
from launch.queueing.job import Training
from launch.queueing.queue import Order, queue
from launch.queueing.resources import Resources
from launch.runs import jobs_of
from shards.errors import InputError

_SITE = "site.sh"


@dataclass(frozen=True)
class Submission:
    """A run that is queued: `job` is its number, or 12_0 for the first task of an array; `run` its folder."""

    job: str
    run: Path


def submit(config: RunConfig, resources: Resources) -> Submission:
    """Queue a run. Raises InputError where it is queued already, and where sbatch refuses."""
    return submit_all([config], resources, Path(config.output_dir))[0]


def submit_all(
    configs: Sequence[RunConfig], resources: Resources, root: Path, at_once: int | None = None
) -> list[Submission]:
    """Queue runs as the tasks of one array, whose own files go below `root`; at most `at_once` run at a time.

    Raises InputError where one is queued already, and where sbatch refuses.
    """
    prepared = prepare(configs, resources, root, at_once)
    if not resources.dependency:
        for run in prepared.runs:
            check_not_queued(run)
    return hand_in(prepared)


@dataclass(frozen=True)
class Prepared:
    """Runs about to be queued: the `order` for it, their folders, and the snapshots to take, a folder each.

    `asked` are the resources that the user asked for, which a later job of the run may ask for again.
    """

    order: Order
    asked: Resources
    runs: tuple[Path, ...]
    snapshots: tuple[tuple[Path, dict[str, bytes]], ...]


def prepare(
    configs: Sequence[RunConfig], resources: Resources, root: Path, at_once: int | None = None
) -> Prepared:
    """What `submit_all` hands in. Writes nothing."""
    root = root.absolute()
    code = snapshot.code()
    if resources.site:
        code[_SITE] = _read(Path(resources.site))
    taken = [(Path(config.output_dir), snapshot.with_config(code, config)) for config in configs]
    runs = tuple(run for run, _ in taken)
    tasks = [Training(str(run), str(snapshot.place(run, files))) for run, files in taken]
    if runs != (root,):
        # The tasks of an array begin with one command: its code is in none of the runs' folders, which may go.
        taken.append((root, code))
    kept = snapshot.place(*taken[-1])
    ordered = Order(
        name=f"ltx-{root.name}",
        tasks=tasks,
        resources=_without_bad_nodes(resources, runs),
        folder=root / "logs" / "submitit",
        snapshot=kept,
        site=kept / _SITE if resources.site else None,
        last_word=("job-left", *map(str, runs)),
        at_once=at_once,
    )
    asked = replace(resources, dependency=None)
    return Prepared(ordered, asked, runs, tuple(taken))


@contextmanager
def kept(prepared: Prepared) -> Iterator[None]:
    """Take the snapshots; where the block raises InputError, as when sbatch refuses, take away again what is new."""
    paths = {snapshot.place(*one) for one in prepared.snapshots}
    # A snapshot that was there before may be one that another job runs.
    new = {
        path for one in (*paths, prepared.order.folder) for path in (one, *one.parents) if not path.exists()
    }
    try:
        for folder, files in prepared.snapshots:
            snapshot.take(folder, files)
        yield
    except InputError:
        for path in paths & new:
            shutil.rmtree(path, ignore_errors=True)
        for path in sorted(new, reverse=True):
            with suppress(OSError):  # what holds something else stays
                path.rmdir()
        raise


def hand_in(prepared: Prepared) -> list[Submission]:
    """Take the snapshots, queue the order and write the job into each run's log."""
    with kept(prepared):
        jobs = queue(prepared.order)
    return record(prepared, jobs)


def record(
    prepared: Prepared, jobs: Sequence[str], stages: Mapping[str, Sequence[str]] | None = None
) -> list[Submission]:
    """Write the job of each run into its log. `stages`: jobs, by stage, of which the run's own waits for the last."""
    for job, run in zip(jobs, prepared.runs, strict=True):
        append(
            RunFolder(run).jobs,
            {
                "time": time.time(),
                "event": "submitted",
                "job": job,
                "restart": 0,
                "nodes": [],
                "ranks": prepared.asked.ranks,
                "resources": prepared.asked.record(),
                "folder": os.getcwd(),
                **({"stages": stages} if stages else {}),
            },
        )
    return [Submission(job, run) for job, run in zip(jobs, prepared.runs, strict=True)]


def check_not_queued(run: Path) -> None:
    """Raise InputError where a job of this run is waiting or running, whoever queued it.

    A second one would find the folder taken, and end.
    """
    for job, place in places(jobs_of(RunFolder(run))).items():
        if place.waits or place.runs:
            raise InputError(
                f"{run}: its job {job} is {place.state.lower()}; stop it first with `ltx-launch stop {run}`, or "
                f"`scancel {job}`"
            )


def _read(site: Path) -> bytes:
    try:
        return site.read_bytes()
    except OSError as error:
        raise InputError(f"--site {site}: cannot be read: {error.strerror}") from error


def _without_bad_nodes(resources: Resources, runs: Sequence[Path]) -> Resources:
    """Leave out the nodes that failed their trial in an earlier job of these runs."""
    bad = {host for run in runs for host in to_avoid(RunFolder(run))}
    if not bad:
        return resources
    given = [resources.exclude] if resources.exclude else []
    return replace(resources, exclude=",".join([*given, *sorted(bad)]))
