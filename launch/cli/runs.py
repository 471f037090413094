"""Commands that look after runs: status, logs, stop, resume, tensorboard."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.arguments import Overrides

if TYPE_CHECKING:
    from dist_trainer.rundir import RunFolder
    from launch.stopping import Ask

app = typer.Typer()

_Run = Annotated[Path, typer.Argument(help="a run's folder (its output_dir)")]
_Swept = Annotated[
    Path, typer.Argument(metavar="RUN", help="a run's folder (its output_dir), or the folder of a sweep")
]
_Runs = Annotated[Path, typer.Argument(help="a run's folder (its output_dir), or one that holds runs")]


@app.command("status")
def status_command(
    folder: _Runs = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="for programs: all that is known")] = False,
) -> None:
    """Say how a run is doing: job, step, loss, speed, time left, checkpoint. Of a folder of runs: a line each."""
    from rich.console import Console

    from launch.looking.panel import panel, table
    from launch.looking.status import statuses
    from launch.runs import runs_of

    found = runs_of(folder)
    read = statuses(found)
    alone = found == [folder]
    if as_json:
        print(json.dumps(read[0].record() if alone else [one.record() for one in read], indent=2))
        return
    Console(soft_wrap=not alone).print(panel(read[0]) if alone else table(read))


@app.command("logs")
def logs_command(
    run: _Run,
    rank: Annotated[int, typer.Option(min=0, help="whose log")] = 0,
    job: Annotated[str | None, typer.Option(help="of which job; default: the newest")] = None,
    following: Annotated[
        bool, typer.Option("--follow", "-f", help="go on until Ctrl-C, also when the job is queued again")
    ] = False,
    lines: Annotated[int, typer.Option("--lines", min=0, help="how many of the last lines")] = 50,
    only_errors: Annotated[bool, typer.Option("--errors", help="the errors of all ranks instead")] = False,
) -> None:
    """Show what a rank printed."""
    from launch.looking.logs import errors, follow, last_lines, log_of
    from launch.runs import one_run

    folder = one_run(run)
    if only_errors:
        log_of(folder, 0, job)
        found = list(errors(folder, job))
        for line in found[-lines:] if lines else []:
            print(line)
        if not found:
            print("no rank has told of an error", file=sys.stderr)
    elif following:
        try:
            follow(folder, rank, job, lines, lambda text: print(text, end="", flush=True))
        except KeyboardInterrupt:
            return
    else:
        for line in last_lines(log_of(folder, rank, job), lines):
            print(line)


@app.command("stop")
def stop_command(
    folder: _Swept,
    now: Annotated[bool, typer.Option("--now", help="end it without a save")] = False,
    save: Annotated[bool, typer.Option("--save", help="only save, and go on")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="return when that is done")] = False,
    limit: Annotated[float, typer.Option(min=0, help="minutes to wait at most")] = 30.0,
) -> None:
    """Stop a run, or all runs of a sweep, for good. It saves first, and is not queued again."""
    from rich.console import Console

    from dist_trainer.stop import STOP_NAME
    from launch import stopping
    from launch.ended.tail import last_step
    from launch.runs import one_or_swept
    from shards.errors import InputError

    if now and save:
        raise InputError("--now --save: give one of them; without any it saves and stops")
    runs = one_or_swept(folder)
    what: Ask = "save" if save else "now" if now else "stop"
    for line in stopping.ask(runs, what):
        print(line, flush=True)
    if any((run.root / STOP_NAME).exists() for run in runs):
        print(f"to go on: ltx-launch resume {folder.absolute()}", flush=True)
    if wait:
        with Console(file=sys.stderr).status("") as shown:
            stopping.wait(runs, what, 60 * limit, shown.update)
        for run in runs:
            name = f"{run.root.name}: " if len(runs) > 1 else ""
            print(f"{name}saved" if save else f"{name}stopped after step {last_step(run.metrics)}")


@app.command("resume")
def resume_command(
    folder: _Swept,
    overrides: Overrides = None,
    nodes: Annotated[
        int | None, typer.Option(min=1, help="hosts; these default to what was asked before")
    ] = None,
    gpus_per_node: Annotated[str | None, typer.Option(help="GPUs of each, as 8 or h100:8; 0: CPUs")] = None,
    cpus_per_task: Annotated[int | None, typer.Option(min=1, help="CPUs of each process")] = None,
    time: Annotated[str | None, typer.Option(help="as sbatch takes it: minutes or 24:00:00")] = None,
    partition: Annotated[str | None, typer.Option(help="sbatch's")] = None,
    account: Annotated[str | None, typer.Option(help="sbatch's")] = None,
    qos: Annotated[str | None, typer.Option(help="sbatch's")] = None,
    here: Annotated[bool, typer.Option("--local", help="on this machine instead of in the queue")] = False,
    processes: Annotated[
        int, typer.Option("--processes", "-n", min=1, help="with --local: processes, one per GPU")
    ] = 1,
) -> None:
    """Go on with a run that has stopped, from its newest checkpoint; takes STOP away. Any number of nodes will do.

    Of a sweep all runs go on that can, each as a job of its own; those that are done are left as they are.
    """
    from launch import resuming
    from launch.queueing.resources import gpus
    from launch.runs import one_or_swept
    from shards.errors import InputError

    runs = one_or_swept(folder)
    if here and len(runs) > 1:
        raise InputError(f"{folder}: is a sweep; with --local give one of its runs, as {runs[0].root}")
    if here:
        raise typer.Exit(resuming.resume_here(runs[0], processes, overrides or []))
    asked = {
        "nodes": nodes, "cpus_per_task": cpus_per_task, "time": time, "partition": partition, "account": account,
        "qos": qos,
    }  # fmt: skip
    if gpus_per_node is not None:
        asked["gpus_per_node"], asked["gpu_type"] = gpus(gpus_per_node)
    changed = {name: value for name, value in asked.items() if value is not None}
    queued, refused = 0, 0
    for run in runs:
        try:
            _go_on(run, changed, overrides or [])
            queued += 1
        except InputError as error:
            done = isinstance(error, resuming.AllDone) and len(runs) > 1
            refused += not done
            print(f"{'done' if done else 'error'}: {error}", file=sys.stdout if done else sys.stderr)
    if queued:
        print(f"watch it:  ltx-launch status {folder}")
    if refused:
        raise typer.Exit(2)


def _go_on(run: RunFolder, changed: Mapping[str, Any], overrides: Sequence[str]) -> None:
    """Queue a run again, or let it wait on where it does."""
    from launch import resuming
    from launch.cli.slurm import say_kept_away

    if not changed and not overrides and (job := resuming.let_wait(run)):
        print(f"took STOP away: job {job} waits in the queue, and goes on when its turn comes")
        return
    told, queued = resuming.resume(run, changed, overrides)
    print(told)
    say_kept_away(queued.run)
    print(f"job {queued.job}: {queued.run}", flush=True)


@app.command("tensorboard")
def tensorboard_command(
    folder: _Runs = Path("runs"),
    port: Annotated[
        int | None, typer.Option(min=1, max=65535, help="default: from 6006 on, the first free")
    ] = None,
    bind: Annotated[
        str, typer.Option(help="address to listen at; anybody who reaches it sees the run")
    ] = "localhost",
    only_print: Annotated[
        bool, typer.Option("--print", help="say how to reach it, and start nothing")
    ] = False,
) -> None:
    """Start TensorBoard here, and say how to reach it from your own machine."""
    import os

    from launch.looking.board import check_events, free_port, serve, tunnel

    check_events(folder)
    chosen = free_port(port, bind)
    print(f"on your own machine:  {tunnel(chosen, os.environ)}")
    print(f"then open:            http://localhost:{chosen}", flush=True)
    if not only_print:
        raise typer.Exit(serve(folder, chosen, bind))
