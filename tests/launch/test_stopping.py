"""A run on this machine is asked to save, to stop and to go on, and looked at meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.rundir import RunFolder, read_log
from launch.status import Status, statuses
from launch.stopping import ask, wait
from launch.tail import last_step
from shards.dataset.opened import Dataset
from shards.errors import InputError
from tests.support.launched import STEPS, ltx_launch
from tests.support.runs import ROOT, environment, tiny_config, trained, write_config

pytestmark = pytest.mark.timeout(500)


class Living:
    """A run of one process that goes on until it is told to stop, by `ltx-launch local`."""

    def __init__(self, root: Path, model: Path, data: Path) -> None:
        blocks = {"optimization": {"steps": 100_000}, "health": {"preflight": False}}
        config = write_config(root / "config.yaml", tiny_config(model, data, root / "run", **blocks))
        self.run = RunFolder(root / "run")
        self.launcher = subprocess.Popen(
            [sys.executable, "-m", "launch", "local", str(config)],
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
        )

    def status(self) -> Status:
        return statuses([self.run.root])[0]

    def until_step(self, step: int) -> None:
        deadline = time.monotonic() + 150
        while last_step(self.run.metrics) < step:
            assert time.monotonic() < deadline
            assert self.launcher.poll() is None
            time.sleep(0.05)


@pytest.fixture
def living(model_folder: Path, paired_dataset: Dataset, tmp_path: Path) -> Iterator[Living]:
    made = Living(tmp_path, model_folder, Path(paired_dataset.root))
    made.until_step(1)
    yield made
    made.launcher.terminate()
    made.launcher.wait(60)


def test_a_run_saves_stops_and_goes_on_as_asked(living: Living) -> None:
    root = living.run.root
    found = living.status()
    assert (found.state, found.steps, found.checkpoint) == ("RUNNING", 100_000, None)
    assert found.eta_s is not None
    refused = ltx_launch("resume", root, "--local")
    assert refused.returncode == 2
    assert "a process trains in it" in refused.stderr
    second = ltx_launch("local", root / "config.yaml")
    assert second.returncode == 2
    assert "another launch is training in this folder" in second.stderr

    saved = ltx_launch("stop", root, "--save", "--wait")
    assert saved.returncode == 0, saved.stderr
    assert saved.stdout.endswith("saved\n")
    assert living.status().state == "RUNNING"
    assert len(complete_steps(living.run.checkpoints)) == 1

    stopped = ltx_launch("stop", root, "--wait")
    assert stopped.returncode == 0, stopped.stderr
    reached = last_step(living.run.metrics)
    assert f"stopped after step {reached}\n" in stopped.stdout
    assert f"ltx-launch resume {root}" in stopped.stdout
    assert living.launcher.wait(60) == 0
    found = living.status()
    assert (found.state, found.checkpoint, found.stop) == ("STOPPED", reached, True)

    with pytest.raises(InputError, match="nothing trains in it now"):
        ask(living.run, "save")
    gone = ltx_launch("resume", root, "--local", f"optimization.steps={reached + 1}")
    assert gone.returncode == 0, gone.stdout + gone.stderr
    assert f"resuming after step {reached}" in gone.stdout
    assert [record["step"] for record in trained(root)] == list(range(1, reached + 2))
    assert [record["event"] for record in read_log(living.run.jobs)] == ["began", "ended", "began", "ended"]
    assert living.status().state == "DONE"


def test_a_run_is_ended_now(living: Living) -> None:
    told = ltx_launch("stop", living.run.root, "--now", "--wait")
    assert told.returncode == 0, told.stderr
    assert f"process {living.launcher.pid}" in told.stdout
    assert living.launcher.wait(60) != 0
    assert read_log(living.run.jobs)[-1]["cause"] == "interrupted"


def test_waiting_has_a_limit_and_says_for_what(run: Path) -> None:
    (run / "SAVE").touch()
    heard: list[str] = []
    with pytest.raises(InputError, match="after 0 minutes it has not saved yet"):
        wait(RunFolder(run), "save", 0.5, heard.append)
    assert heard[0] == "it has not saved yet"


def test_stopping_what_does_not_run_says_so(run: Path) -> None:
    (run / "DONE").unlink()
    done = ltx_launch("stop", run, "--wait")
    assert done.returncode == 0, done.stderr
    assert "nothing trains in it now" in done.stdout
    assert (run / "STOP").exists()


def test_a_run_that_is_done_is_not_stopped(run: Path) -> None:
    done = ltx_launch("stop", run)
    assert (done.returncode, done.stdout) == (
        0,
        f"{run}: all {STEPS} steps are done; there is nothing to stop\n",
    )
    assert not (run / "STOP").exists()


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    for command in ("stop", "resume", "logs", "status"):
        done = ltx_launch(command, tmp_path)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith(f"error: {tmp_path}: holds no run")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_done_does_not_go_on_without_more_steps(run: Path) -> None:
    done = ltx_launch("resume", run, "--local")
    assert done.returncode == 2
    assert f"all {STEPS} steps are done; give optimization.steps=MORE" in done.stderr


def test_stop_stays_where_going_on_is_refused(run: Path) -> None:
    (run / "STOP").touch()
    done = ltx_launch("resume", run, "--local", "seed=7", f"optimization.steps={STEPS + 1}")
    assert done.returncode == 2
    assert "seed: was 42, now 7" in done.stderr
    assert (run / "STOP").exists()
    assert json.loads((run / "state.json").read_text())["seed"] == 42


def test_a_run_that_sbatch_queued_is_left_to_sbatch(run: Path) -> None:
    done = ltx_launch("resume", run, f"optimization.steps={STEPS + 1}")
    assert done.returncode == 2
    assert "none of its jobs was queued by ltx-launch" in done.stderr
