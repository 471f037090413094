"""A run on this machine is asked to save, to stop and to go on, and looked at meanwhile."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.config import dump, load
from dist_trainer.logs import append, read_log
from dist_trainer.rundir import RunFolder
from launch.cli import main
from launch.ended.tail import last_step
from launch.looking.status import Status, statuses
from launch.queueing.resources import Resources
from launch.stopping import ask, wait
from shards.dataset.opened import Dataset
from shards.errors import InputError
from tests.support.launched import STEPS, ltx_launch
from tests.support.programs import stand_ins
from tests.support.runs import ROOT, environment, tiny_config, trained, write_config

pytestmark = pytest.mark.timeout(500)


def _in_background() -> None:
    """As a script's & leaves it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Living:
    """A run of one process that goes on until it is told to stop, by `ltx-launch local ... &` in a script."""

    def __init__(self, root: Path, model: Path, data: Path) -> None:
        blocks = {"optimization": {"steps": 100_000}, "health": {"preflight": False}}
        config = write_config(root / "config.yaml", tiny_config(model, data, root / "run", **blocks))
        self.run = RunFolder(root / "run")
        self.launcher = subprocess.Popen(
            [sys.executable, "-m", "launch", "local", str(config)],
            env=environment(),
            cwd=ROOT,
            stdout=subprocess.DEVNULL,
            preexec_fn=_in_background,
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
        list(ask([living.run], "save"))
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
        wait([RunFolder(run)], "save", 0.5, heard.append)
    assert heard[0] == f"it has not saved yet (step {STEPS})"


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


@pytest.fixture
def sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a sweep: run 0 trains as a task of array 12, 1 waits, 2 is done; its Slurm is no cluster."""
    root = tmp_path / "sweep"
    (root / "snapshots" / "0123456789abcdef").mkdir(parents=True)
    for number in range(3):
        run = RunFolder(root / f"seed={number}")
        run.ranks.mkdir(parents=True)
        asked = Resources(gpus_per_node=0).record()
        append(run.jobs, {"event": "submitted", "job": f"12_{number}", "resources": asked})
    append(RunFolder(root / "seed=0").jobs, {"event": "began", "job": "13"})
    done = RunFolder(root / "seed=2")
    done.done.write_text("3\n")
    described = tiny_config(root, root / "data", done.root, optimization={"steps": 3})
    done.config.write_text(dump(load(write_config(tmp_path / "c.yaml", described))))
    said = "echo '12_0|13|RUNNING|None|N/A|N/A|node1'; echo '12_1|12|PENDING|Resources|N/A|N/A|'"
    stand_ins(tmp_path / "bin", monkeypatch, squeue=said, scancel='echo "$@" >> "$HERE/cancelled"')
    return root


def test_a_sweep_is_stopped_with_all_its_runs(sweep: Path) -> None:
    one, other, done = (sweep / f"seed={number}" for number in range(3))
    told = ltx_launch("stop", sweep).stdout.splitlines()
    assert told[0] == f"seed=0: wrote {one}/STOP; it saves after the step it is in, and stops for good"
    assert told[1].startswith(
        f"seed=1: wrote {other}/STOP; nothing trains in it now; job 12_1 waits in the queue"
    )
    assert told[2].startswith("seed=2: ")
    assert "all 3 steps are done" in told[2]
    assert told[3:] == [f"to go on: ltx-launch resume {sweep}"]
    assert [(run / "STOP").exists() for run in (one, other, done)] == [True, True, False]


def test_jobs_of_a_sweep_are_cancelled_once_each(sweep: Path) -> None:
    assert ltx_launch("stop", sweep, "--now").returncode == 0
    assert (sweep.parent / "bin" / "cancelled").read_text() == "12_0\n12_1\n"


def test_a_sweep_saves_where_it_trains_and_is_waited_for(sweep: Path) -> None:
    asked = ltx_launch("stop", sweep, "--save")
    assert asked.stdout.startswith("seed=0: asked to save")
    assert (asked.returncode, asked.stderr) == (
        2,
        f"error: {sweep}/seed=1: nothing trains in it now, so there is nothing to save\n",
    )
    late = ltx_launch("stop", sweep, "--wait", "--limit", "0")
    assert late.returncode == 2
    assert f"{sweep}/seed=0: after 0 minutes job 12_0 still runs" in late.stderr


@pytest.mark.parametrize(
    ("prepare", "doctor", "first"),
    [
        ("RUNNING", "PENDING", "12 (prepare)"),
        ("COMPLETED", "RUNNING", "13 (doctor)"),
        ("COMPLETED",) * 2 + ("",),
    ],
)
def test_a_pipeline_that_is_stopped_tells_what_still_makes_its_dataset_or_ends_it(
    prepare: str, doctor: str, first: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunFolder(tmp_path / "run")
    stages = {"prepare": ["12_0", "12_1"], "doctor": ["13"]}
    append(run.jobs, {"event": "submitted", "job": "14", "stages": stages})
    places = {"12_0": "COMPLETED", "12_1": prepare, "13": doctor, "14": "PENDING"}
    said = "; ".join(f"echo '{job}|{job}|{state}|None|N/A|N/A|'" for job, state in places.items())
    folder = stand_ins(tmp_path / "bin", monkeypatch, squeue=said, scancel='echo "$@" >> "$HERE/cancelled"')
    goes_on = f"job {first} goes on with the dataset; `scancel {first[:2]}` ends it, and takes out what waits for it"
    assert [line for line in ask([run], "stop") if "dataset" in line] == ([goes_on] if first else [])
    list(ask([run], "now"))
    assert (folder / "cancelled").read_text().split() == ["14", *([first[:2]] if first else [])]


def test_runs_that_are_no_sweep_are_not_stopped_together(sweep: Path) -> None:
    (sweep / "snapshots" / "0123456789abcdef").rmdir()
    (sweep / "snapshots").rmdir()
    refused = ltx_launch("stop", sweep)
    assert refused.stderr == f"error: {sweep}: is neither a run nor a sweep; give one, as {sweep}/seed=0\n"
    assert not (sweep / "seed=0" / "STOP").exists()


def test_all_runs_of_a_sweep_go_on_that_can(sweep: Path) -> None:
    (sweep / "seed=1" / "STOP").touch()
    done = ltx_launch("resume", sweep)
    assert done.returncode == 2, "one of them trains"
    assert "job 12_1 waits in the queue, and goes on" in done.stdout
    assert f"watch it:  ltx-launch status {sweep}\n" in done.stdout
    assert not (sweep / "seed=1" / "STOP").exists()
    [refused] = done.stderr.splitlines()
    assert refused.startswith("error: ")
    assert "its job 12_0 is running" in refused
    assert f"done: {sweep}/seed=2: all 3 steps are done; " in done.stdout
    one = ltx_launch("resume", sweep, "--local")
    assert one.returncode == 2
    assert "is a sweep; with --local give one of its runs" in one.stderr


def test_a_sweep_goes_on_without_its_runs_that_are_done(
    sweep: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = "echo '12_0|13|PENDING|Priority|N/A|N/A|'; echo '12_1|12|PENDING|Priority|N/A|N/A|'"
    stand_ins(sweep.parent / "bin", monkeypatch, squeue=waiting)

    def resumed() -> int:
        monkeypatch.setattr("sys.argv", ["ltx-launch", "resume", str(sweep)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    for number in (0, 1):
        (sweep / f"seed={number}" / "STOP").touch()
    assert resumed() == 0
    told = capsys.readouterr()
    assert told.out.count("took STOP away") == 2
    assert f"done: {sweep}/seed=2: all 3 steps are done; " in told.out
    assert told.err == ""
    for number in (0, 1):
        shutil.rmtree(sweep / f"seed={number}")
    shutil.copytree(sweep / "seed=2", sweep / "seed=1")
    assert resumed() == 0
    assert capsys.readouterr().out.count("done: ") == 2, "and nothing is left to go on with"


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
