"""From clips to exported weights: a chain of jobs, each of which begins when the one before has ended well."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dist_trainer.config import RunConfig
from dist_trainer.validation.request import check_files
from launch.job import Command
from launch.queue import Order, queue
from launch.resources import Resources
from launch.submit import Prepared, check_not_queued, hand_in, keep, prepare
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


def stages(config: RunConfig, resources: Resources, data: Data) -> tuple[list[Stage], Prepared]:
    """The chain in its order, train being the third, and what its training is. Writes nothing.

    Raises InputError where the table or a file for sample videos is not there, or the config names no dataset to make.
    """
    out = config.data.preprocessed_data_root
    if not out:
        raise InputError(
            "data.preprocessed_data_root: not set; name the folder or URL to make the dataset in"
        )
    if not Path(data.table).is_file():
        raise InputError(f"--table {data.table}: no such file")
    check_files(config)
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

    def stage(name: str, module: str, words: Sequence[str], asked: Resources, tasks: int, does: str) -> Stage:
        command = Command((sys.executable, "-P", "-m", module, *words))
        # One that is killed comes back a few times: one killed of many would fail the stage, and cancel the chain.
        named = replace(training.order, name=f"{training.order.name}-{name}", last_word=("stage-left",))
        order = replace(named, tasks=[command] * tasks, resources=asked)
        return Stage(name, order, does)

    return [
        stage("prepare", "shards", encode, encoding, data.workers, f"{data.table} -> {out}"),
        stage("doctor", "shards", ("doctor", out), one, 1, f"is {out} sound?"),
        Stage("train", training.order, f"{resources.ranks} ranks -> {run}"),
        stage("export", "dist_trainer", ("export", str(run)), one, 1, f"weights -> {run / 'exports'}"),
    ], training


def pipeline(config: RunConfig, resources: Resources, data: Data) -> list[Stage]:
    """Queue the chain; its stages with their jobs. What cannot begin any more, as the one before failed, is cancelled.

    Raises InputError as `stages` does, and where the run is queued already or sbatch refuses; then nothing is queued.
    """
    planned, training = stages(config, resources, data)
    check_not_queued(training.runs[0])
    keep(training)
    queued: list[Stage] = []
    try:
        for stage in planned:
            order = stage.order.after(queued[-1].job) if queued else stage.order
            job = hand_in(replace(training, order=order))[0].job if stage.name == "train" else queue(order)[0]
            queued.append(replace(stage, order=order, job=job.partition("_")[0]))
    except InputError:
        if queued:
            subprocess.run(["scancel", *(stage.job for stage in queued)], check=False)
        raise
    return queued
