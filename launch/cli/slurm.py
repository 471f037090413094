"""Commands that queue jobs on a Slurm cluster: slurm, pipeline."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from launch.cli.arguments import Config, Overrides
from launch.queueing.resources import Resources, gpus
from shards.errors import InputError

if TYPE_CHECKING:
    from dist_trainer.config import RunConfig
    from launch.queueing.queue import Order

app = typer.Typer()

_USUAL_SITE = Path("slurm/site.sh")
# Exit codes of a task that was killed: Slurm's own where it took too much memory, else 128 and the signal.
_OUT_OF_MEMORY, _KILLED, _MOST_KILLED = 125, 128, 5


def _resources(
    nodes: Annotated[int, typer.Option(min=1, help="hosts")] = 1,
    gpus_per_node: Annotated[
        str, typer.Option(help="GPUs of each, as 8 or h100:8, one process for each GPU; 0: train on CPUs")
    ] = "8",
    tasks_per_node: Annotated[
        int | None, typer.Option(min=1, help="processes of each host, without GPUs; default 1")
    ] = None,
    cpus_per_task: Annotated[int, typer.Option(min=1, help="CPUs of each process")] = 8,
    time: Annotated[
        str, typer.Option(help="as sbatch takes it: minutes, 24:00:00 or 2-12:00:00")
    ] = "24:00:00",
    lead: Annotated[
        int, typer.Option(min=1, help="seconds before that at which the run begins to save")
    ] = 300,
    partition: Annotated[str | None, typer.Option(help="sbatch's")] = None,
    account: Annotated[str | None, typer.Option(help="sbatch's")] = None,
    qos: Annotated[str | None, typer.Option(help="sbatch's")] = None,
    constraint: Annotated[str | None, typer.Option(help="sbatch's, features that hosts must have")] = None,
    exclude: Annotated[
        str | None, typer.Option(help="sbatch's, hosts to keep away from, as node3,node[7-9]")
    ] = None,
    dependency: Annotated[str | None, typer.Option(help="sbatch's, as afterok:123")] = None,
    sbatch: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="any other option of sbatch, as mem=0; repeatable"),
    ] = None,
    site: Annotated[
        Path | None,
        typer.Option(help="file that the job's shell reads first; default: slurm/site.sh where that is here"),
    ] = None,
) -> Resources:
    number, kind = gpus(gpus_per_node)
    return Resources(
        nodes, number, tasks_per_node, cpus_per_task, time, lead, partition, account, qos, constraint, exclude,
        dependency, _options(sbatch), _site(site), kind,
    )  # fmt: skip


def _asking(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command that takes `resources` the options of `_resources` in their place."""
    own, options = (signature(one, eval_str=True).parameters for one in (command, _resources))

    @wraps(command)
    def asking(**given: Any) -> None:
        command(resources=_resources(**{name: given.pop(name) for name in options}), **given)

    kept = [one for one in own.values() if one.name != "resources"]
    asking.__signature__ = Signature([*kept, *options.values()])  # type: ignore[attr-defined]
    return asking


@app.command("slurm")
@_asking
def slurm_command(
    config: Config,
    resources: Resources,
    overrides: Overrides = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE", help="a run for each value; several: for each combination"),
    ] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="most runs of a sweep at a time")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="show the script and the plan; queue nothing")
    ] = False,
) -> None:
    """Queue training on a Slurm cluster. It comes back by itself after its time limit, preemption, or a crash."""
    from dist_trainer.config import load
    from launch.queueing.submit import prepare, submit_all
    from launch.queueing.sweep import check_apart, variants

    base = load(config, overrides or [])
    configs = [
        load(config, [*(overrides or []), *one.overrides]).model_copy(
            update={"output_dir": base.output_dir / one.name}
        )
        for one in variants(sweep or [])
    ]
    check_apart(configs)
    _foresee(configs, resources, show=dry_run)
    if dry_run:
        _show(prepare(configs, resources, base.output_dir, at_once).order)
        return
    queued = submit_all(configs, resources, base.output_dir, at_once)
    for one in queued:
        print(f"job {one.job}: {one.run}")
        say_kept_away(one.run)
    print(_how_to_watch(base.output_dir, queued[0].run, queued[0].job))


@app.command("pipeline")
@_asking
def pipeline_command(
    config: Config,
    table: Annotated[
        str, typer.Option(help="CSV, JSON or JSONL of clips and captions, as of `ltx-shards encode`")
    ],
    buckets: Annotated[str, typer.Option(help="sizes to bring clips to, as 768x448x89,512x512x1")],
    resources: Resources,
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="whose VAE and text encoder encode; default: the config's model")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="jobs that encode side by side")] = 1,
    encode: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD", help="another word for `ltx-shards encode`; repeatable"),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what runs; queue nothing")] = False,
    scripts: Annotated[
        bool, typer.Option("--scripts", help="the same, with the sbatch script of each stage")
    ] = False,
) -> None:
    """Queue all from clips to exported weights: encode, check, train, export, each when the one before ended well."""
    from dist_trainer.config import load
    from launch.queueing.pipeline import Data, pipeline, stages

    resolved = load(config, overrides or [])
    data = Data(table, model or resolved.model.model_source, buckets, workers, tuple(encode or ()))
    if dry_run or scripts:
        planned = stages(resolved, resources, data)[0]
        print(f"{'stage':<8} {'after':<8} command")
        first = resources.dependency or "-"
        for stage, before in zip(planned, [first, *(one.name for one in planned)], strict=False):
            print(f"{stage.name:<8} {before:<8} {stage.command}")
        # Jobs have no numbers yet: the stage's name stands for its own.
        for stage, before in zip(planned, ["", *(one.name.upper() for one in planned)], strict=False):
            if scripts:
                print(f"\n# {stage.name}", end="")
                _show(stage.order.after(before) if before else stage.order)
        return
    queued = pipeline(resolved, resources, data)
    print(f"{'stage':<8} {'job':<10} {'after':<10} what")
    for stage, before in zip(queued, ["", *(one.job for one in queued)], strict=False):
        print(f"{stage.name:<8} {stage.job:<10} {before or '-':<10} {stage.does}")
    train = next(stage for stage in queued if stage.name == "train")
    say_kept_away(resolved.output_dir)
    print(_how_to_watch(resolved.output_dir, resolved.output_dir, train.job))


def say_kept_away(run: Path) -> None:
    """Print which hosts a run's job keeps away from, if any."""
    from dist_trainer.rundir import RunFolder
    from launch.ended.after import kept_away, to_avoid

    folder = RunFolder(run)
    if told := kept_away(folder, to_avoid(folder)):
        print(f"it {told}")


@app.command("stage-left", hidden=True)
def stage_left_command(code: Annotated[int, typer.Argument()]) -> None:
    """After a data stage's task that ended badly: queue it again where it was killed, as one short of memory is."""
    import os

    from dist_trainer.job import start_of
    from launch.ended.requeue import place, queued_as, requeue

    job, (_, restart) = queued_as(os.environ), start_of(os.environ)
    if (code == _OUT_OF_MEMORY or code > _KILLED) and restart < _MOST_KILLED:
        now = place(job)
        if now.ours and now.restarts == restart:
            print(f"ended with code {code}, killed; it comes back and goes on where it was", flush=True)
            requeue(job)
    raise typer.Exit(code)


@app.command("job-left", hidden=True)
def left_command(
    runs: Annotated[list[Path], typer.Argument()], code: Annotated[int, typer.Argument()]
) -> None:
    """After the tasks of a job, where one ended badly: do what is left, as the first was killed before it could."""
    import os

    from dist_trainer.job import start_of
    from dist_trainer.rundir import RunFolder
    from launch.cli.after import after_ranks
    from launch.ended.after import bad_hosts
    from launch.ended.requeue import place, queued_as, requeue
    from launch.queueing.supervisor import end_of

    run = runs[int(os.environ.get("SLURM_ARRAY_TASK_ID", "0"))]
    said = end_of(run, os.environ)
    if said is None:
        after_ranks(run, code)
    elif said["again"]:
        job, (_, restart) = queued_as(os.environ), start_of(os.environ)
        now = place(job)
        if now.ours and now.restarts == restart:  # it was killed before it could act on its own word
            requeue(job, bad_hosts(RunFolder(run)))
    raise typer.Exit(code)


def _site(given: Path | None) -> str | None:
    """The file of the cluster's own settings."""
    if given is None:
        return str(_USUAL_SITE.absolute()) if _USUAL_SITE.is_file() else None
    return str(given.absolute())


def _options(given: list[str] | None) -> dict[str, str]:
    """Options of sbatch by name, out of name=value or name alone."""
    return {name.lstrip("-"): value for name, _, value in (one.partition("=") for one in given or ())}


def _foresee(configs: list[RunConfig], resources: Resources, show: bool) -> None:
    """Raise InputError for a run that could not begin; print what each will be."""
    from dist_trainer.config import dump
    from launch.queueing.forecast import forecast

    told = []
    for config in configs:
        try:
            told += [str(config.output_dir), *str(forecast(config, resources.ranks)).splitlines()]
        except InputError as error:
            raise InputError(
                f"{config.output_dir.name}: {error}" if len(configs) > 1 else str(error)
            ) from error
    if show:
        print(dump(configs[0]))
    for line in told:
        print(f"# {line}" if show else line)


def _show(order: Order) -> None:
    from launch.queueing.queue import script

    print(f"\n{script(order)}")


def _how_to_watch(queued: Path, first: Path, job: str) -> str:
    """`queued` is a run or a sweep, whose `first` run is the one to show the logs of."""
    return "\n".join(
        (
            f"watch it:  ltx-launch status {queued}",
            f"           ltx-launch logs {first}",
            f"           squeue --jobs={job.partition('_')[0]}",
            f"stop it:   ltx-launch stop {queued}",
        )
    )
