"""A job on a real Slurm is looked at, stopped, waits, and goes on upon another number of nodes."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.logs import append
from dist_trainer.rundir import RunFolder
from launch.ended.tail import last_step
from shards.dataset.opened import Dataset
from tests.support.runs import ROOT, environment, tiny_config, trained, write_config
from tests.support.slurm import Cluster

ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")

pytestmark = pytest.mark.timeout(600)


class Launcher:
    """Commands of ltx-launch on the cluster, about one run."""

    def __init__(self, slurm: Cluster, root: Path) -> None:
        self.slurm, self.run = slurm, RunFolder(root / "run")

    def call(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        own = {name: value for name, value in environment().items() if name != "PATH"}
        return subprocess.run(
            [sys.executable, "-m", "launch", *map(str, words)],
            cwd=ROOT,
            env=self.slurm.environment(**own),
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def __call__(self, *words: str | Path) -> str:
        done = self.call(*words)
        assert done.returncode == 0, done.stdout + done.stderr + self.slurm.logs()
        return done.stdout

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self("status", self.run.root, "--json"))
        return found

    def until_step(self, job: str, step: int) -> None:
        self.slurm.wait(job, *ENDED, limit=300, until=lambda: last_step(self.run.metrics) >= step)
        assert last_step(self.run.metrics) >= step, self.call("logs", self.run.root).stdout


def test_a_job_is_looked_after_from_its_start_to_its_end(
    slurm: Cluster, model_folder: Path, paired_dataset: Dataset, tmp_path: Path
) -> None:
    launcher = Launcher(slurm, tmp_path)
    root = launcher.run.root
    blocks = {"optimization": {"steps": 100_000}, "health": {"preflight": False}}
    config = write_config(
        tmp_path / "config.yaml", tiny_config(model_folder, paired_dataset.root, root, **blocks)
    )
    told = launcher(
        "slurm", config, "--gpus-per-node", "0", "--cpus-per-task", "1", "--nodes", "2", "--time", "60"
    )
    job = next(line for line in told.splitlines() if line.startswith("job ")).split()[1].rstrip(":")
    launcher.until_step(job, 2)

    found = launcher.status()
    assert (found["state"], found["job"], found["restarts"], found["steps"]) == ("RUNNING", job, 0, 100_000)
    assert found["nodes"].startswith("node[")
    assert time.strptime(found["since"], "%Y-%m-%dT%H:%M:%S") < time.strptime(
        found["ends"], "%Y-%m-%dT%H:%M:%S"
    )
    assert found["eta_s"] > 0
    assert f"step {2}/100000" in launcher("logs", root, "--lines", "5000")
    assert launcher.call("logs", root, "--rank", "1").returncode == 0
    refused = launcher.call("resume", root)
    assert refused.returncode == 2
    assert f"its job {job} is running" in refused.stderr

    assert "saves after the step it is in" in launcher("stop", root, "--wait")
    reached = last_step(launcher.run.metrics)
    assert slurm.wait(job, *ENDED) == "COMPLETED"
    found = launcher.status()
    assert (found["state"], found["step"], found["checkpoint"]) == ("STOPPED", reached, reached)

    _waits_and_is_cancelled(launcher, tmp_path)

    steps = f"optimization.steps={reached + 2}"
    told = launcher("resume", root, steps, "--nodes", "1")
    assert not (root / "STOP").exists()
    second = next(line for line in told.splitlines() if line.startswith("job ")).split()[1].rstrip(":")
    assert slurm.wait(second, *ENDED, limit=300) == "COMPLETED", launcher.call("logs", root).stdout
    found = launcher.status()
    assert (found["state"], found["job"], found["step"]) == ("DONE", second, reached + 2)
    assert [record["step"] for record in trained(root)] == list(range(1, reached + 3))
    assert f"resuming after step {reached}" in launcher("logs", root, "--lines", "5000")
    assert f"step {reached}/" in launcher("logs", root, "--job", job)


def _waits_and_is_cancelled(launcher: Launcher, folder: Path) -> None:
    """A job of the run that Slurm holds back."""
    root = launcher.run.root
    held = launcher.slurm.submit("--hold", "--wrap=true", f"--output={folder}/held", cwd=folder)
    append(launcher.run.jobs, {"event": "submitted", "job": held, "restart": 0, "nodes": []})
    found = launcher.status()
    assert (found["state"], found["detail"], found["job"]) == ("PENDING", "JobHeldUser", held)
    told = launcher("stop", root)
    assert f"job {held} waits in the queue (JobHeldUser): it would only find STOP and end" in told
    assert f"cancelled job {held}" in launcher("stop", root, "--now")
    assert launcher.slurm.state(held) == "CANCELLED"
