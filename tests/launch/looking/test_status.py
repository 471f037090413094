"""`ltx-launch status`: how a run is doing, read from its folder while it may be written."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.logs import append
from dist_trainer.rundir import RunFolder
from launch.ended.cause import ending
from launch.ended.requeue import Place
from launch.looking.status import Status, statuses
from launch.runs import runs_of
from shards.errors import InputError
from tests.support.launched import INTERVAL, STEPS, ltx_launch


def read(run: Path) -> Status:
    return statuses([run])[0]


def record(step: int, **figures: float) -> str:
    base = {"train/loss": 1.0, "speed/tokens_per_s": 100.0, "time/step_s": 2.0}
    return json.dumps({"step": step, **base, **figures}) + "\n"


def end(run: Path, code: int, cause: str = "", **more: Any) -> None:
    ended = {"event": "ended", "job": "local", "restart": 0, "code": code, "cause": cause}
    append(RunFolder(run).jobs, {**ended, **more})


def hold(run: Path) -> Any:
    lock = (run / ".lock").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return lock


def test_a_run_that_is_done(run: Path) -> None:
    found = read(run)
    assert (found.state, found.done, found.job, found.restarts) == ("DONE", True, "local", 0)
    assert (found.step, found.steps, found.checkpoint) == (STEPS, STEPS, STEPS)
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert found.loss == last["train/loss"]
    assert found.eta_s is None
    assert (found.skipped, found.replaced, found.bad_nodes, found.error) == (0, 0, (), "")


def test_speed_and_time_left_are_of_the_last_twenty_steps(run: Path) -> None:
    slow = "".join(record(step, **{"time/step_s": 500.0}) for step in range(1, 6))
    fast = "".join(record(step, **{"time/step_s": 1.0 + step % 2}) for step in range(6, 26))
    (run / "metrics.jsonl").write_text(slow + fast)
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace(f"steps: {STEPS}", "steps: 45")
    )
    with hold(run):
        found = read(run)
    assert (found.state, found.step, found.steps, found.step_s) == ("RUNNING", 25, 45, 1.5)
    assert found.tokens_per_s == pytest.approx(100.0)
    assert found.eta_s == 20 * 1.5


def begin(run: Path, **more: Any) -> None:
    append(RunFolder(run).jobs, {"event": "began", "job": "7", "restart": 0, "time": time.time(), **more})


def slurm_says(monkeypatch: pytest.MonkeyPatch, *known: Place) -> None:
    """Of job 7."""
    monkeypatch.setattr(
        "launch.looking.status.places", lambda jobs: dict.fromkeys(jobs, *known) if known else {}
    )


def test_figures_are_of_the_last_start_alone(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "DONE").unlink()
    begin(run, time=time.time() + 5, step=2)
    slurm_says(monkeypatch, Place("PENDING", "BeginTime"))
    found = read(run)
    assert (found.state, found.tokens_per_s, found.step_s, found.eta_s) == ("PENDING", None, None, None)
    slurm_says(monkeypatch, Place("RUNNING", ""))
    found = read(run)
    assert (found.state, found.step, found.tokens_per_s, found.eta_s) == ("RUNNING", STEPS, None, None)
    assert found.detail == "no step yet since it was started"

    # It goes on after step 2, what came then is taken away; then it trains.
    begin(run, time=1.0, step=2)
    slow = record(2, **{"time/step_s": 500.0})
    (run / "metrics.jsonl").write_text(slow)
    assert read(run).tokens_per_s is None
    (run / "metrics.jsonl").write_text(slow + record(3, **{"time/step_s": 2.0}))
    found = read(run)
    assert (found.step_s, found.detail) == (2.0, "")


def test_a_line_that_is_being_written_is_passed_over(run: Path) -> None:
    whole = (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").write_text(whole + record(STEPS + 1)[:-1])
    assert read(run).step == STEPS
    (run / "metrics.jsonl").write_text(whole + record(STEPS + 1)[:20])
    assert read(run).step == STEPS


def test_a_loss_that_is_no_number_is_none(run: Path) -> None:
    (run / "metrics.jsonl").write_text(record(1, **{"train/loss": float("nan")}))
    assert read(run).loss is None


def test_looking_leaves_the_folder_free_to_train_in(run: Path) -> None:
    read(run)
    with RunFolder(run).hold():
        assert read(run).state == "RUNNING"


@pytest.mark.parametrize(
    ("code", "cause", "state", "error"),
    [
        (0, "", "ENDED", ""),
        (85, "told to end, and saved", "SAVED", ""),
        (1, "rank 1 (node2): Killed", "FAILED", "rank 1 (node2): Killed"),
    ],
)
def test_how_the_last_start_ended(run: Path, code: int, cause: str, state: str, error: str) -> None:
    (run / "DONE").unlink()
    end(run, code, cause)
    found = read(run)
    assert (found.state, found.detail, found.error) == (state, cause, error)


def test_a_run_whose_job_was_cancelled_says_so(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "DONE").unlink()
    begin(run)
    slurm_says(monkeypatch, Place("CANCELLED", ""))
    cancelled = ("CANCELLED", "it does not come back; to go on: `ltx-launch resume`")
    assert (read(run).state, read(run).detail) == cancelled
    end(run, 85, "told to end, and saved", job="7", why="the job is being cancelled; submit again to go on")
    assert (read(run).state, read(run).detail) == cancelled
    slurm_says(monkeypatch)  # which forgets a job after a while
    found = read(run)
    assert found.state == "SAVED"
    assert found.detail == (
        "told to end, and saved; it does not come back: the job is being cancelled; submit again to go on"
    )


def test_a_run_that_was_to_come_back_and_did_not(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "DONE").unlink()
    begin(run)
    end(run, 85, "told to end, and saved", job="7", again=True, why="it comes back")
    slurm_says(monkeypatch)
    assert "was to come back, but nothing is known of its job here; to go on: " in read(run).detail
    slurm_says(monkeypatch, Place("PREEMPTED", ""))
    assert "was to come back, but Slurm says PREEMPTED; to go on: " in read(run).detail
    begin(run, restart=1)
    assert read(run).state == "PREEMPTED", "how the start before ended does not count"


def test_a_start_that_came_to_no_step_is_an_error_while_its_job_waits(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (run / "DONE").unlink()
    begin(run, step=STEPS)
    end(run, 85, ending(RunFolder(run), "7", 85).cause, job="7", again=True)
    slurm_says(monkeypatch, Place("PENDING", "BeginTime"))
    found = read(run)
    assert (found.state, found.detail) == ("PENDING", "BeginTime")
    assert "before its first step" in found.error
    assert "ask for more" in found.error


def test_a_run_that_was_told_to_stop(run: Path) -> None:
    (run / "DONE").unlink()
    (run / "STOP").touch()
    assert read(run).state == "STOPPED"
    shown = ltx_launch("status", run).stdout
    assert "STOPPED" in shown
    assert "ltx-launch resume" in shown


def test_what_went_wrong_on_the_way_is_counted(run: Path) -> None:
    folder = RunFolder(run)
    for step in (4, 5):
        append(folder.skipped, {"step": step})
    append(folder.replaced, {"step": 3})
    append(folder.jobs, {"event": "began", "job": "7", "restart": 0, "nodes": ["node3"]})
    append(folder.bad_nodes, {"job": "7", "restart": 0, "host": "node3.cluster.org", "cause": "no GPU"})
    found = read(run)
    assert (found.skipped, found.replaced, found.bad_nodes) == (2, 1, ("node3",))
    shown = "".join(ltx_launch("status", run).stdout.split())
    assert "keepsawayfromnode3" in shown
    assert "deleteitslinesin" in shown


def test_a_run_that_waits_is_told_by_what_it_was_queued_with(tmp_path: Path, run: Path) -> None:
    queued = tmp_path / "queued"
    append(RunFolder(queued).jobs, {"event": "submitted", "job": "123", "restart": 0, "nodes": []})
    snapshot = queued / "snapshots" / "0123456789abcdef"
    snapshot.mkdir(parents=True)
    shutil.copy(run / "config.yaml", snapshot)
    found = read(queued)
    assert (found.job, found.step, found.steps, found.detail) == ("123", 0, STEPS, "it has not begun")


def test_runs_of_a_folder(run: Path, tmp_path: Path) -> None:
    (tmp_path / "no run").mkdir()
    assert runs_of(run) == [run]
    assert runs_of(tmp_path) == [run]
    swept = [tmp_path / "a sweep" / f"seed={seed}" for seed in (1, 2)]
    for folder in swept:
        folder.mkdir(parents=True)
        shutil.copy(run / "state.json", folder)
    assert runs_of(tmp_path) == [*swept, run]
    with pytest.raises(InputError, match="holds no run"):
        runs_of(tmp_path / "no run")
    with pytest.raises(InputError, match="no such folder"):
        runs_of(tmp_path / "none")


def test_a_panel_a_table_and_json_say_the_same(run: Path, tmp_path: Path) -> None:
    panel, table = ltx_launch("status", run), ltx_launch("status", tmp_path)
    for shown in (panel, table):
        assert shown.returncode == 0, shown.stderr
        assert f"{STEPS} of {STEPS}" in shown.stdout
        assert "DONE" in shown.stdout
    assert f"after step {STEPS}" in panel.stdout
    assert len(table.stdout.splitlines()) == 2
    one = json.loads(ltx_launch("status", run, "--json").stdout)
    assert json.loads(ltx_launch("status", tmp_path, "--json").stdout) == [one]
    assert (one["state"], one["step"], one["run"]) == ("DONE", STEPS, str(run))
    assert INTERVAL < one["checkpoint"] == STEPS


def test_without_a_file_of_locks_nothing_is_written(run: Path) -> None:
    (run / ".lock").unlink()
    before = sorted(os.listdir(run))
    assert read(run).state == "DONE"
    assert sorted(os.listdir(run)) == before
