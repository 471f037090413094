"""From clips to exported weights: a chain of jobs, each of which begins when the one before has ended well."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

from dist_trainer.config import RunConfig
from dist_trainer.validation.request import check_files
from launch.queueing.forecast import check_beginning
from launch.queueing.job import Command
from launch.queueing.queue import Order, cancel, queue
from launch.queueing.resources import Resources
from launch.queueing.submit import Prepared, check_not_queued, kept, prepare, record
from shards.errors import InputError


@dataclass(frozen=True)
class Data:
    """How `ltx-shards encode` makes the config's dataset: `table` of clips, `model`, `buckets`, `more` words of it."""

    table: str
    model: str
    buckets: str
    workers: int = 1
    more: tuple[str, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One job of the chain: its `name`, the `order` for it, what it `does` in words. `job`: its number once queued."""

    name: str
    order: Order
    does: str
    job: str = ""

    @property
    def command(self) -> str:
        """What its processes run, as it would be typed, after their number."""
        count = len(self.order.tasks) * self.order.resources.ranks
        return f"{f'{count} x ' if count > 1 else ''}{self.order.tasks[0]}"


def stages(config: RunConfig, resources: Resources, data: Data) -> tuple[list[Stage], Prepared]:
    """The chain in its order, train being the third, and what its training is. Writes nothing.

    Raises InputError where the table or a file for sample videos is not there, the config names no dataset to make, or
    the run could not begin.
    """
    out = config.data.preprocessed_data_root
    if not out:
        raise InputError(
            "data.preprocessed_data_root: not set; name the folder or URL to make the dataset in"
        )
    if not Path(data.table).is_file():
        raise InputError(f"--table {data.table}: no such file")
    check_files(config)
    check_beginning(config)
    training = prepare([config], replace(resources, dependency=None), Path(config.output_dir))
    run = training.runs[0]
    encode = (
        "encode",
        data.table,
        "--model",
        data.model,
        "--buckets",
        data.buckets,
        "--out",
        out,
        *data.more,
    )
    one = replace(resources, nodes=1, gpus_per_node=0, tasks_per_node=None, dependency=None)
    # Every task encodes what no other has taken; on one GPU each, where there are some.
    encoding = replace(one, gpus_per_node=min(1, resources.gpus_per_node), dependency=resources.dependency)

    def stage(name: str, command: Command, asked: Resources, does: str, tasks: int = 1) -> Stage:
        # One that is killed comes back a few times: one killed of many would fail the stage, and cancel the chain.
        named = replace(training.order, name=f"{training.order.name}-{name}", last_word=("stage-left",))
        return Stage(name, replace(named, tasks=[command] * tasks, resources=asked), does)

    exports = f"weights -> {run / 'exports'}, if all steps are done"
    return [
        stage("prepare", Command("shards", encode), encoding, f"{data.table} -> {out}", data.workers),
        stage("doctor", Command("shards", ("doctor", out)), one, f"is {out} sound?"),
        Stage("train", training.order, f"{resources.ranks} ranks -> {run}"),
        stage("export", Command("dist_trainer", ("export", str(run)), done=str(run)), one, exports),
    ], training


def pipeline(config: RunConfig, resources: Resources, data: Data) -> list[Stage]:
    """Queue the chain; its stages with their jobs. What cannot begin any more, as the one before failed, is cancelled.

    Raises InputError as `stages` does, and where the run is queued already or sbatch refuses; then nothing is queued.
    """
    planned, training = stages(config, resources, data)
    check_not_queued(training.runs[0])
    queued: list[Stage] = []
    jobs: dict[str, list[str]] = {}
    with kept(training):
        try:
            for stage in planned:
                order = stage.order.after(queued[-1].job) if queued else stage.order
                jobs[stage.name] = queue(order)
                queued.append(replace(stage, order=order, job=jobs[stage.name][0].partition("_")[0]))
        except BaseException:
            if queued:
                cancel([stage.job for stage in queued], training.order.folder)
            raise
    record(training, jobs["train"], {name: jobs[name] for name in ("prepare", "doctor")})
    return queued
