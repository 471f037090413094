"""The batch scripts, unmodified, on a real Slurm: two nodes, a tiny config, a signal to stop and a node that dies."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from shards.dataset.opened import Dataset
from tests.support.runs import ROOT, environment, losses, tiny_config, trained, write_config
from tests.support.slurm import Cluster

SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))
STEPS, INTERVAL = 40, 8
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_parses(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


class Jobs:
    """Jobs of `slurm/full_ft.sh` on two nodes, one task each."""

    def __init__(self, slurm: Cluster, root: Path, model: Path, data: Path) -> None:
        self.slurm, self.root = slurm, root
        self._model, self._data = model, data

    def folder(self, name: str) -> Path:
        return self.root / name

    def submit(self, name: str) -> str:
        blocks = {
            "optimization": {"steps": STEPS, "learning_rate": 1e-3},
            "checkpoints": {"interval": INTERVAL},
        }
        described = tiny_config(self._model, self._data, self.folder(name), **blocks)
        config = write_config(self.root / f"{name}.yaml", described)
        size = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=10")
        output = f"--output={self.root}/{name}.out"
        words = (*size, output, "slurm/full_ft.sh", str(config), "seed=7")
        return self.slurm.submit(*words, cwd=ROOT, env=environment())

    def printed(self, name: str) -> str:
        path = self.root / f"{name}.out"
        return path.read_text(errors="replace") if path.is_file() else ""

    def steps(self, name: str) -> int:
        path = self.folder(name) / "metrics.jsonl"
        return path.read_text().count("\n") if path.is_file() else 0

    def until_steps(self, name: str, count: int) -> None:
        deadline = time.monotonic() + 120
        while self.steps(name) < count:
            assert time.monotonic() < deadline, self.printed(name)
            time.sleep(0.02)

    def ends(self, name: str, job: str) -> None:
        assert self.slurm.wait(job, *ENDED, limit=200) == "COMPLETED", self.printed(name)
        assert self.steps(name) == STEPS


@pytest.fixture(scope="module")
def jobs(
    slurm: Cluster, model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Jobs:
    made = Jobs(slurm, tmp_path_factory.mktemp("jobs"), model_folder, paired_dataset.root)
    made.ends("whole", made.submit("whole"))
    return made


def test_a_signal_saves_and_queues_the_job_again_and_nothing_shows_it(jobs: Jobs) -> None:
    job = jobs.submit("signal")
    jobs.until_steps("signal", 1)
    # What --signal does before the time limit: to the steps' processes, not to the script.
    jobs.slurm.call("scancel", "--signal=USR2", job)
    jobs.ends("signal", job)
    printed = jobs.printed("signal")
    assert printed.count("saved; queued again") == 1
    assert "resuming after step" in printed
    assert losses(jobs.folder("signal")) == losses(jobs.folder("whole"))
    assert trained(jobs.folder("signal")) == trained(jobs.folder("whole"))


def test_a_node_that_dies_costs_the_steps_since_the_last_checkpoint_alone(jobs: Jobs) -> None:
    job = jobs.submit("node")
    jobs.until_steps("node", INTERVAL + 2)
    names = jobs.slurm.call("squeue", "--noheader", f"--jobs={job}", "--format=%N")
    node = jobs.slurm.call("scontrol", "show", "hostnames", names).split()[-1]
    jobs.slurm.kill_node(node)
    try:
        jobs.ends("node", job)
    finally:
        jobs.slurm.start_node(node)
    assert "resuming after step" in jobs.printed("node")
    assert losses(jobs.folder("node")) == losses(jobs.folder("whole"))
    assert trained(jobs.folder("node")) == trained(jobs.folder("whole"))
