"""Slurm's queue, through submitit: callables become jobs, several of them the tasks of one array."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

from submitit.core.utils import FailedJobError, FailedSubmissionError
from submitit.helpers import clean_env
from submitit.slurm.slurm import SlurmExecutor

from launch.ended.asking import ask_slurm
from launch.queueing.resources import Resources
from shards.errors import InputError

# What ends a chain of restarts is told by launch.ended.after, which looks at the run's progress, not at time-outs.
_NO_LIMIT = 10**9
# What submitit calls its files before sbatch has given their job a number; some stay, as links.
_UNNUMBERED = re.compile(r"[0-9a-f]{32}\.pkl|\.submission_file_[0-9a-f]{32}\.sh")
# srun must not end the others when one task ends: the first task decides what becomes of the job, and needs its time.
# Tasks get all that the script sets, also on sites where jobs are queued with --export=NONE.
_SRUN = ("--kill-on-bad-exit=0", "--wait=1800", "--export=ALL")


@dataclass(frozen=True)
class Order:
    """Work to queue: `tasks` are callables that submitit can pickle, one job or, where they are several, an array.

    `folder` takes submitit's files and logs, `snapshot` holds the code that runs, `site` is a copy of slurm/site.sh.
    `last_word`: a command of ltx-launch, called after the tasks where one ended badly, with the exit code behind it.
    `at_once`: most tasks of an array that run at a time.
    """

    name: str
    tasks: Sequence[Callable[[], object]]
    resources: Resources
    folder: Path
    snapshot: Path
    site: Path | None = None
    last_word: tuple[str, ...] = ()
    at_once: int | None = None

    def after(self, job: str) -> Order:
        """The same, to begin when this job, or all tasks of this array, have ended well."""
        both = [word for word in (self.resources.dependency, f"afterok:{job}") if word]
        return replace(self, resources=replace(self.resources, dependency=",".join(both)))


class _Executor(SlurmExecutor):
    """Also where there is no Slurm, to show the script."""

    @classmethod
    def affinity(cls) -> int:
        return 2

    def script(self, tasks: int) -> str:
        """The batch script of a job, or of an array of more than one task."""
        if tasks > 1:
            self.parameters["map_count"] = tasks
        return self._make_submission_file_text(self._submitit_command_str, "")


def queue(order: Order) -> list[str]:
    """Queue the work with `sbatch`; the number of its job, or of each task of its array as 12_0.

    Raises InputError where there is no Slurm, and with what sbatch said where it refuses; then no file is left of it.
    """
    if shutil.which("sbatch") is None:
        raise InputError("sbatch is not found; call this on a host of the cluster, or try --dry-run")
    executor = _executor(order)
    before = _unnumbered(order.folder)
    try:
        order.folder.mkdir(parents=True, exist_ok=True)
        # submitit prints what sbatch said; here it is part of the one line of the error.
        with _outside_any_job(), redirect_stderr(StringIO()):
            jobs = executor.submit_array(order.tasks)
    except (FailedJobError, FailedSubmissionError) as error:
        for path in _unnumbered(order.folder) - before:
            path.unlink(missing_ok=True)
        raise InputError(f"sbatch: {_said(error)}") from error
    except OSError as error:
        raise InputError(f"{order.folder}: cannot be written: {error}; choose another output_dir") from error
    return [str(job.job_id) for job in jobs]


def cancel(jobs: Sequence[str], folder: Path) -> None:
    """Take jobs that were queued a moment ago out again, and submitit's files of them out of their `folder`."""
    ask_slurm("scancel", *jobs)
    for path in [path for job in jobs for path in folder.glob(f"{job}_*")]:
        path.unlink(missing_ok=True)
    for link in _unnumbered(folder):
        if not link.exists():  # it leads to one of them
            link.unlink()


def script(order: Order) -> str:
    """The batch script that `queue` would hand in. Writes nothing."""
    return _executor(order).script(len(order.tasks))


def _executor(order: Order) -> _Executor:
    for folder in (order.folder, Path.cwd()):
        if not str(folder).isprintable() or "%" in str(folder):
            # A second line of the batch script would be a command; sbatch fills in what follows a %.
            raise InputError(f"{str(folder)!r}: has a line break or % in its name; choose another folder")
    # Ahead of whatever the environment leads to; without -P the folder of the call would come first.
    path = f'PYTHONPATH={shlex.quote(str(order.snapshot))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    here = shlex.quote(sys.executable)
    called, outside = ('"${PYTHON[@]}"', '"${HOST_PYTHON[@]}"') if order.site else (here, here)
    executor = _Executor(order.folder, max_num_timeout=_NO_LIMIT, python=f"env {path} {called} -P")
    given: dict[str, Any] = order.resources.parameters()
    given["srun_args"] = [*_SRUN, *given["srun_args"]]
    # Paths in a config are meant from the folder of the call.
    given["additional_parameters"]["chdir"] = os.getcwd()
    if order.at_once is not None:
        given["array_parallelism"] = order.at_once
    executor.update_parameters(
        job_name=re.sub(r"[^\w.=,-]+", "_", order.name)[:60],
        stderr_to_stdout=True,
        setup=_setup(order.site) if order.site else None,
        teardown=_teardown(f"env {path} {outside} -P", order.last_word) if order.last_word else None,
        **given,
    )
    return executor


def _setup(site: Path) -> list[str]:
    """Lines before srun: what the cluster's own file sets, PYTHON, HOST_PYTHON and SRUN among it."""
    return [
        f"export LTX_PYTHON=${{LTX_PYTHON:-{shlex.quote(sys.executable)}}}",
        f"export LTX_HOST_PYTHON=${{LTX_HOST_PYTHON:-{shlex.quote(sys.executable)}}}",
        'PYTHON=("$LTX_PYTHON") HOST_PYTHON=("$LTX_HOST_PYTHON") SRUN=()',
        f"source {shlex.quote(str(site))}",
        'srun() { command srun "${SRUN[@]}" "$@"; }',
    ]


def _teardown(python: str, last_word: Sequence[str]) -> list[str]:
    """Lines after srun. What they arrange makes Slurm end the script, which has to wait until it is done.

    They ask Slurm, whose commands the tasks' container may not have: `python` is one outside.
    """
    return [
        "code=$?",
        "trap '' TERM",
        f'[ "$code" -eq 0 ] || {python} -m launch {shlex.join(last_word)} "$code" || code=$?',
        'exit "$code"',
    ]


@contextmanager
def _outside_any_job() -> Iterator[None]:
    """Inside a job (of salloc, say) leave out what it set, which a new job would take for its own."""
    if "SLURM_JOB_ID" not in os.environ:
        yield
        return
    cluster = os.environ.get("SLURM_CONF")
    with clean_env():
        if cluster is not None:
            os.environ["SLURM_CONF"] = cluster
        yield


def _unnumbered(folder: Path) -> set[Path]:
    return {path for path in folder.glob("*") if _UNNUMBERED.fullmatch(path.name)}


def _said(error: Exception) -> str:
    """What sbatch printed, out of submitit's report, each line of it once."""
    lines = [line for line in str(error).splitlines() if line.startswith("sbatch:")]
    bare = [re.sub(r"^sbatch: *(error: *)?", "", line).strip() for line in lines]
    return "; ".join(dict.fromkeys(bare)) or " ".join(str(error).split())
