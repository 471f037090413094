"""`ltx-launch slurm` on a real Slurm: a run disturbed in every way, one that is cancelled, a sweep, a short limit.

All are queued at once, out of a copy of the code that is edited right after.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.logs import append, read_log
from dist_trainer.rundir import RunFolder
from shards.dataset.opened import Dataset
from tests.support import forked
from tests.support.audit import assert_same_run
from tests.support.queueing import ltx_launch_on
from tests.support.runs import ONE_PACK, ROOT, tiny_config, write_config
from tests.support.slurm import Cluster

STEPS, INTERVAL, FEW, ENDLESS = 80, 30, 6, 10**6
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")

pytestmark = pytest.mark.timeout(600)


def launch(slurm: Cluster, root: Path, commands: list[list[str]]) -> list[tuple[str, Path]]:
    """`ltx-launch slurm` for each, out of a copy of the code that is of no use afterwards; jobs and runs as printed."""
    copy = root / "copy"
    for package in ("shards", "dist_trainer", "launch"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    printed = ltx_launch_on(slurm, *(["slurm", *words] for words in commands), code=copy)
    for name in ("dist_trainer/train.py", "launch/queueing/job.py", "launch/queueing/supervisor.py"):
        (copy / name).write_text("raise SystemExit('edited code is run')\n")
    return [(job, Path(run)) for job, run in re.findall(r"^job (\S+): (\S+)$", printed, re.M)]


class Run:
    """One queued run."""

    def __init__(self, slurm: Cluster, folder: Path, job: str) -> None:
        self.slurm, self.folder, self.job = slurm, folder, job

    def steps(self) -> int:
        path = self.folder / "metrics.jsonl"
        return path.read_text().count("\n") if path.is_file() else 0

    def events(self, event: str) -> list[dict[str, Any]]:
        return [one for one in read_log(RunFolder(self.folder).jobs) if one["event"] == event]

    def until(self, starts: int, more_steps: int = 2) -> None:
        """Wait until this start of the job has trained some steps."""
        began = lambda: len(self.events("began")) >= starts  # noqa: E731
        self.slurm.wait(self.job, *ENDED, until=began, limit=200)
        assert began(), self.told()
        before = self.steps()
        trained = lambda: self.steps() >= before + more_steps  # noqa: E731
        deadline = time.monotonic() + 200
        while not trained():
            assert time.monotonic() < deadline, self.told()
            time.sleep(0.02)

    def ends(self) -> str:
        return self.slurm.wait(self.job, *ENDED, limit=300)

    def told(self) -> str:
        """All that was printed."""
        paths = [
            *sorted((self.folder / "logs").rglob("*.out")),
            *sorted((self.folder / "logs").rglob("*.log")),
        ]
        own = [*paths, RunFolder(self.folder).jobs]
        return "\n".join(f"--- {path}\n{path.read_text(errors='replace')}" for path in own if path.is_file())

    def kill(self, rank: int, *, supervisor: bool = False) -> None:
        """SIGKILL the trainer of a task, or who stands over it."""
        os.kill(self.slurm.ranks(self.job, rank)[0 if supervisor else 1], signal.SIGKILL)


class Queued:
    """Everything, queued at once. The disturbed run has nodes 2 to 4 and is held, all others are on 1 and 2."""

    def __init__(self, slurm: Cluster, root: Path, model: Path, data: Path) -> None:
        self.slurm, self.whole = slurm, root / "whole"

        def config(name: str, steps: int) -> Path:
            blocks = {
                "optimization": {"steps": steps, "learning_rate": 1e-3},
                "checkpoints": {"interval": INTERVAL},
                "health": {"preflight": False},
                "seed": 7,
                **ONE_PACK,
            }
            return write_config(root / f"{name}.yaml", tiny_config(model, data, root / name, **blocks))

        def words(name: str, steps: int, *more: str) -> list[str]:
            return [str(config(name, steps)), "--gpus-per-node=0", "--cpus-per-task=1", *more]

        here = "--exclude=node[3-4]"
        queued = launch(
            slurm,
            root,
            [
                words("sweep", FEW, "--nodes=2", here, "--sweep=optimization.learning_rate=1e-3,2e-3"),
                words("short", ENDLESS, "--time=2", "--lead=30", here),
                words("cancelled", ENDLESS, here),
                words(
                    "disturbed", STEPS, "--nodes=2", "--partition=preempt", "--exclude=node1", "--sbatch=hold"
                ),
            ],
        )
        *self.sweep, self.short, self.cancelled, self.disturbed = (
            Run(slurm, run, job) for job, run in queued
        )
        beside = ThreadPoolExecutor(2)
        self.short_is_over = beside.submit(self._stop_short)
        whole, logs = config("whole", STEPS), root / "whole_logs"
        self.whole_is_trained = beside.submit(forked.train, 2, whole, logs, timeout_s=240)

    def _stop_short(self) -> str:
        """Tell the run of the short limit to stop for good, once it has come back."""
        self.slurm.wait(self.short.job, *ENDED, until=lambda: bool(self.short.events("ended")), limit=300)
        (self.short.folder / "STOP").touch()
        return self.short.ends()


@pytest.fixture(scope="module")
def queued(
    slurm: Cluster, model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Queued:
    return Queued(slurm, tmp_path_factory.mktemp("submitit"), model_folder, paired_dataset.root)


def test_a_cancelled_job_stays_cancelled(queued: Queued) -> None:
    run = queued.cancelled
    run.until(1)
    queued.slurm.call("scancel", run.job)
    assert run.ends() == "CANCELLED"
    time.sleep(1.0)
    assert queued.slurm.state(run.job) == "CANCELLED"
    assert not any(one["again"] for one in run.events("ended"))


def test_a_run_goes_on_after_everything_that_can_happen_to_it_and_nothing_shows_it(queued: Queued) -> None:
    run, slurm = queued.disturbed, queued.slurm
    slurm.call("scontrol", "release", run.job)
    run.until(1)
    bad = run.events("began")[-1]["nodes"][0]
    append(RunFolder(run.folder).bad_nodes, {"job": run.job, "restart": 0, "host": bad, "cause": "test"})
    slurm.call("scancel", "--signal=TERM", run.job)

    run.until(2)
    assert bad not in run.events("began")[-1]["nodes"]
    run.kill(1)

    run.until(3)
    run.kill(0, supervisor=True)

    run.until(4)
    nodes = ",".join(run.events("began")[-1]["nodes"])
    other = slurm.submit(
        "--exclusive",
        f"--nodelist={nodes}",
        "--partition=main",
        "--output=/dev/null",
        "--wrap=true",
        cwd=run.folder,
    )
    run.until(5)
    assert slurm.wait(other, *ENDED) == "COMPLETED"
    node = run.events("began")[-1]["nodes"][-1]
    slurm.kill_node(node)
    slurm.start_node(node)

    assert run.ends() == "COMPLETED", run.told()
    ends = {one["restart"]: one for one in run.events("ended")}
    assert [ends[start]["code"] for start in (0, 3, 5)] == [85, 85, 0], run.told()
    # Saved when asked, by TERM and by what a job is told that gives way: nothing is trained twice.
    assert all(ends[start]["step"] == ends[start]["reached"] for start in (0, 3))
    assert "SIGTERM came" in run.told()
    assert "SIGUSR2 came" in run.told()
    assert re.fullmatch(r"rank 1 \(node\d\): killed by SIGKILL", ends[1]["cause"])
    assert ends[2]["code"] == 137
    queued.whole_is_trained.result()
    assert_same_run(run.folder, queued.whole)


def test_a_sweep_trains_a_run_for_each_value(queued: Queued) -> None:
    names = [run.folder.name for run in queued.sweep]
    assert names == ["learning_rate=1e-3", "learning_rate=2e-3"]
    assert [run.job.partition("_")[2] for run in queued.sweep] == ["0", "1"]
    for run in queued.sweep:
        assert run.ends() == "COMPLETED", run.told()
        assert run.steps() == FEW
    first, second = (RunFolder(run.folder).config.read_text() for run in queued.sweep)
    assert "learning_rate: 0.001" in first
    assert "learning_rate: 0.002" in second


def test_a_run_comes_back_at_its_time_limit(queued: Queued) -> None:
    run = queued.short
    assert queued.short_is_over.result() == "COMPLETED", run.told()
    first, *others, last = run.events("ended")
    assert (first["code"], first["again"]) == (85, True)
    assert first["step"] == first["reached"], "nothing was trained that was not saved"
    assert all(one["code"] == 85 for one in others)
    assert last["code"] == 0
    # Which comes first is the cluster's: its signal, or the clock that the run looks at.
    assert re.search(r"SIGUSR2|the job ends in", run.told())
