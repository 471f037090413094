"""Commands that queue jobs on a Slurm cluster: slurm, pipeline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.errors import InputError

if TYPE_CHECKING:
    from dist_trainer.config import RunConfig
    from launch.queue import Order
    from launch.resources import Resources

app = typer.Typer()

_USUAL_SITE = Path("slurm/site.sh")
# Exit codes of a task that was killed: Slurm's own where it took too much memory, else 128 and the signal.
_OUT_OF_MEMORY, _KILLED, _MOST_KILLED = 125, 128, 5

_Config = Annotated[Path, typer.Argument(help="YAML file of the run")]
_Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="settings to replace")]
_Nodes = Annotated[int, typer.Option(min=1, help="hosts")]
_Gpus = Annotated[
    str,
    typer.Option(help="GPUs of each, as 8 or h100:8, one process for each GPU; 0: train on CPUs"),
]
_Tasks = Annotated[int | None, typer.Option(min=1, help="processes of each host, without GPUs; default 1")]
_Cpus = Annotated[int, typer.Option(min=1, help="CPUs of each process")]
_Time = Annotated[str, typer.Option(help="as sbatch takes it: minutes, 24:00:00 or 2-12:00:00")]
_Lead = Annotated[int, typer.Option(min=1, help="seconds before that at which the run begins to save")]
_Partition = Annotated[str | None, typer.Option(help="sbatch's")]
_Account = Annotated[str | None, typer.Option(help="sbatch's")]
_Qos = Annotated[str | None, typer.Option(help="sbatch's")]
_Constraint = Annotated[str | None, typer.Option(help="sbatch's, features that hosts must have")]
_Exclude = Annotated[str | None, typer.Option(help="sbatch's, hosts to keep away from, as node3,node[7-9]")]
_Dependency = Annotated[str | None, typer.Option(help="sbatch's, as afterok:123")]
_Sbatch = Annotated[
    list[str] | None,
    typer.Option(metavar="NAME=VALUE", help="any other option of sbatch, as mem=0; repeatable"),
]
_Site = Annotated[
    Path | None,
    typer.Option(help="file that the job's shell reads first; default: slurm/site.sh where that is here"),
]
_DryRun = Annotated[bool, typer.Option("--dry-run", help="show the script and the plan; queue nothing")]


@app.command("slurm")
def slurm_command(
    config: _Config,
    overrides: _Overrides = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,VALUE", help="a run for each value; several: for each combination"),
    ] = None,
    at_once: Annotated[int | None, typer.Option(min=1, help="most runs of a sweep at a time")] = None,
    nodes: _Nodes = 1,
    gpus_per_node: _Gpus = "8",
    tasks_per_node: _Tasks = None,
    cpus_per_task: _Cpus = 8,
    time: _Time = "24:00:00",
    lead: _Lead = 300,
    partition: _Partition = None,
    account: _Account = None,
    qos: _Qos = None,
    constraint: _Constraint = None,
    exclude: _Exclude = None,
    dependency: _Dependency = None,
    sbatch: _Sbatch = None,
    site: _Site = None,
    dry_run: _DryRun = False,
) -> None:
    """Queue training on a Slurm cluster. It comes back by itself after its time limit, preemption, or a crash."""
    from dist_trainer.config import load
    from launch.resources import Resources, gpus
    from launch.submit import prepare, submit_all
    from launch.sweep import variants

    number, kind = gpus(gpus_per_node)
    resources = Resources(
        nodes, number, tasks_per_node, cpus_per_task, time, lead, partition, account, qos, constraint, exclude,
        dependency, _options(sbatch), _site(site), kind,
    )  # fmt: skip
    base = load(config, overrides or [])
    configs = [
        load(config, [*(overrides or []), *one.overrides]).model_copy(
            update={"output_dir": base.output_dir / one.name}
        )
        for one in variants(sweep or [])
    ]
    _foresee(configs, resources, show=dry_run)
    if dry_run:
        _show(prepare(configs, resources, base.output_dir, at_once).order)
        return
    queued = submit_all(configs, resources, base.output_dir, at_once)
    for one in queued:
        print(f"job {one.job}: {one.run}")
        say_kept_away(one.run)
    print(_how_to_watch(queued[0].run, queued[0].job))


@app.command("pipeline")
def pipeline_command(
    config: _Config,
    table: Annotated[
        str, typer.Option(help="CSV, JSON or JSONL of clips and captions, as of `ltx-shards encode`")
    ],
    buckets: Annotated[str, typer.Option(help="sizes to bring clips to, as 768x448x89,512x512x1")],
    overrides: _Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="whose VAE and text encoder encode; default: the config's model")
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="jobs that encode side by side")] = 1,
    encode: Annotated[
        list[str] | None,
        typer.Option(metavar="WORD", help="another word for `ltx-shards encode`; repeatable"),
    ] = None,
    nodes: _Nodes = 1,
    gpus_per_node: _Gpus = "8",
    tasks_per_node: _Tasks = None,
    cpus_per_task: _Cpus = 8,
    time: _Time = "24:00:00",
    lead: _Lead = 300,
    partition: _Partition = None,
    account: _Account = None,
    qos: _Qos = None,
    constraint: _Constraint = None,
    exclude: _Exclude = None,
    dependency: _Dependency = None,
    sbatch: _Sbatch = None,
    site: _Site = None,
    dry_run: _DryRun = False,
) -> None:
    """Queue all from clips to exported weights: encode, check, train, export, each when the one before ended well."""
    from dist_trainer.config import dump, load
    from launch.pipeline import Data, pipeline, stages
    from launch.resources import Resources, gpus

    number, kind = gpus(gpus_per_node)
    resources = Resources(
        nodes, number, tasks_per_node, cpus_per_task, time, lead, partition, account, qos, constraint, exclude,
        dependency, _options(sbatch), _site(site), kind,
    )  # fmt: skip
    resolved = load(config, overrides or [])
    data = Data(table, model or resolved.model.model_source, buckets, workers, tuple(encode or ()))
    if dry_run:
        print(dump(resolved))
        before = ""
        for stage in stages(resolved, resources, data)[0]:
            print(f"# {stage.name}: {stage.does}")
            # Jobs have no numbers yet: the stage's name stands for its own.
            _show(stage.order.after(before) if before else stage.order)
            before = stage.name.upper()
        return
    queued = pipeline(resolved, resources, data)
    print(f"{'stage':<8} {'job':<10} {'after':<10} what")
    for stage, before in zip(queued, ["", *(one.job for one in queued)], strict=False):
        print(f"{stage.name:<8} {stage.job:<10} {before or '-':<10} {stage.does}")
    train = next(stage for stage in queued if stage.name == "train")
    say_kept_away(resolved.output_dir)
    print(_how_to_watch(resolved.output_dir, train.job))


def say_kept_away(run: Path) -> None:
    """Print which hosts a run's job keeps away from, if any."""
    from dist_trainer.rundir import RunFolder
    from launch.after import kept_away, to_avoid

    folder = RunFolder(run)
    if told := kept_away(folder, to_avoid(folder)):
        print(f"it {told}")


@app.command("stage-left", hidden=True)
def stage_left_command(code: Annotated[int, typer.Argument()]) -> None:
    """After a data stage's task that ended badly: queue it again where it was killed, as one short of memory is."""
    import os

    from launch.after import start_of
    from launch.requeue import place, queued_as, requeue

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

    from dist_trainer.rundir import RunFolder
    from launch.after import bad_hosts, start_of
    from launch.cli.after import after_ranks
    from launch.requeue import place, queued_as, requeue
    from launch.supervisor import end_of

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
    from launch.forecast import forecast

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
    from launch.queue import script

    print(f"\n{script(order)}")


def _how_to_watch(run: Path, job: str) -> str:
    return "\n".join(
        (
            f"watch it:  ltx-launch status {run}",
            f"           ltx-launch logs {run}",
            f"           squeue --jobs={job.partition('_')[0]}",
            f"stop it:   ltx-launch stop {run}",
        )
    )
