"""Commands of the batch scripts (slurm/lib/run.sh), not shown to users: what comes before and after a run's ranks."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from dist_trainer.config import load
from dist_trainer.job import start_of
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import COME_BACK_CODE, STOP_NAME
from launch.ended.after import Verdict, after, bad_hosts, began, ended, kept_away, refusal, to_avoid
from launch.ended.cause import ending, mark
from launch.ended.requeue import keep_away, names, queued_as, requeue
from shards.errors import InputError

app = typer.Typer()


@app.command("job-began", hidden=True)
def began_command(
    config: Annotated[Path, typer.Argument()], overrides: Annotated[list[str] | None, typer.Argument()] = None
) -> None:
    """Print the run's folder, made ready for the ranks' logs; nothing where the run is done or was told to stop.

    A job that has got a node which failed this run's trial (one submitted anew knows of none) comes back on others.
    """
    settings = load(config, overrides or [])
    folder = RunFolder(Path(settings.output_dir).absolute())
    if (folder.root / STOP_NAME).exists():
        print(f"{folder.root / STOP_NAME} is there: remove it to go on", file=sys.stderr)
        return
    if (steps := folder.steps_done()) >= settings.optimization.steps:
        print(
            f"{folder.root}: all {steps} steps are done; raise optimization.steps to go on", file=sys.stderr
        )
        return
    job, restart = start_of(os.environ)
    nodes = list(names(os.environ.get("SLURM_JOB_NODELIST", "localhost")))
    ranks = int(os.environ.get("SLURM_NTASKS", "1")) * int(os.environ.get("LTX_RANKS_PER_TASK") or 1)
    if why := refusal(folder.root, os.environ):
        ended(folder.root, 2, why, Verdict(False, why), os.environ)
        raise InputError(why)
    began(folder.root, nodes, ranks, os.environ)
    try:
        folder.ranks.mkdir(parents=True, exist_ok=True)
        mark(folder, job, restart)
    except OSError as error:
        raise InputError(
            f"output_dir: {folder.root}: cannot be written: {error}; choose another folder"
        ) from error
    if not set(bad_hosts(folder)).isdisjoint(nodes):
        # Slurm ends this script meanwhile, which must not cut this short.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        hosts = to_avoid(folder)
        requeue(queued_as(os.environ), hosts)
        print(f"job {job}: it comes back and {kept_away(folder, hosts)}", file=sys.stderr, flush=True)
        raise typer.Exit(COME_BACK_CODE)
    print(folder.root)


@app.command("job-ended", hidden=True)
def after_ranks(run: Annotated[Path, typer.Argument()], code: Annotated[int, typer.Argument()]) -> None:
    """Say how the ranks ended, note it, and queue the job again where it comes back. Ends with the code that counts."""
    folder, (job, restart) = RunFolder(run), start_of(os.environ)
    end = ending(folder, job, code)
    for line in end.shown:
        print(line)
    try:
        verdict = after(run, end.code, os.environ)
    except InputError as error:
        verdict = Verdict(False, f"not known whether to come back: {error}")
    ended(run, end.code, end.cause, verdict, os.environ)
    if end.code:
        print(f"job {job}, start {restart + 1}, ended with code {end.code}: {end.cause}")
        print(verdict.why if verdict.again else f"error: not queued again: {verdict.why}", flush=True)
    if verdict.queued:
        keep_away(queued_as(os.environ), verdict.exclude)
    elif verdict.again:
        requeue(queued_as(os.environ), verdict.exclude)
    raise typer.Exit(end.code)
