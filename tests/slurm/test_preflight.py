"""A node that cannot read the dataset, on a real Slurm: recorded, kept away from, and the run goes on elsewhere."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from dist_trainer.logs import read_log
from dist_trainer.rundir import RunFolder
from shards.dataset.opened import Dataset
from tests.support.runs import ROOT, environment, lines, tiny_config, write_config
from tests.support.slurm import Cluster

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")

pytestmark = pytest.mark.timeout(600)


def test_a_node_without_the_dataset_is_recorded_and_the_job_comes_back_on_another(
    slurm: Cluster, model_folder: Path, paired_dataset: Dataset, tmp_path: Path
) -> None:
    blocks = {"optimization": {"steps": 2}, "health": {"preflight": True}}
    config = tiny_config(model_folder, paired_dataset.root, tmp_path / "run", **blocks)
    size = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=1", "--time=20")
    script = ("slurm/full_ft.sh", str(write_config(tmp_path / "config.yaml", config)))
    job = slurm.submit(*size, f"--output={tmp_path}/job.out", *script, cwd=ROOT, env=environment())
    slurm.wait(job, "RUNNING")
    bad = slurm.hosts(job)[1]
    # Its ranks still import: seconds before they look.
    with slurm.hidden(bad, paired_dataset.root):
        state = slurm.wait(job, *ENDED, limit=300)
    printed = "\n".join(path.read_text(errors="replace") for path in sorted(tmp_path.rglob("*.[ol][uo][tg]")))
    assert state == "COMPLETED", printed
    folder = RunFolder(tmp_path / "run")
    [record] = read_log(folder.bad_nodes)
    assert (record["host"], record["job"], record["restart"]) == (bad, job, 0)
    assert f"{bad}: data.preprocessed_data_root: {paired_dataset.root} is not a dataset" in record["cause"]
    assert time.time() - record["time"] < 600
    first, second = [one for one in read_log(folder.jobs) if one["event"] == "ended"]
    assert (first["code"], first["again"], second["code"]) == (1, True, 0), printed
    assert [bad in one["nodes"] for one in read_log(folder.jobs) if one["event"] == "began"] == [True, False]
    assert len(lines(folder.metrics)) == 2
