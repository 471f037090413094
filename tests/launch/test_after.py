"""What becomes of a job that has ended, from what the run's folder says of its starts before."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.config import dump, load
from dist_trainer.rundir import RunFolder, append, read_log, write_text
from launch.after import after, ended
from launch.requeue import Place
from tests.support.runs import ROOT

JOB = {"SLURM_RESTART_COUNT": "0"}  # outside Slurm: there is nobody to ask whether it is cancelled
CRASH = 137


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with nothing in it."""
    return RunFolder(tmp_path)


def checkpoint(run: RunFolder, step: int) -> None:
    """What a complete checkpoint has."""
    folder = run.checkpoints / f"step_{step:06d}"
    folder.mkdir(parents=True)
    write_text(folder / "checkpoint.json", "{}")


def start(run: RunFolder, code: int, number: int = 0) -> bool:
    """A start of the job ends with `code`; whether it comes back."""
    environ = {"SLURM_RESTART_COUNT": str(number)}
    verdict = after(run.root, code, environ)
    ended(run.root, code, "a test", verdict, environ)
    return verdict.again


@pytest.mark.parametrize(
    ("code", "again"), [(0, False), (2, False), (85, True), (1, True), (CRASH, True), (-9, True)]
)
def test_what_is_done_and_bad_input_do_not_come_back(run: RunFolder, code: int, again: bool) -> None:
    assert start(run, code) is again


def test_a_crash_comes_back_three_times_without_a_new_checkpoint(run: RunFolder) -> None:
    checkpoint(run, 10)
    assert [start(run, CRASH, number) for number in range(4)] == [True, True, True, False]
    verdict = after(run.root, CRASH, JOB)
    assert "without a new checkpoint since step 10 (health.max_restarts: 3)" in verdict.why


def test_a_new_checkpoint_begins_the_count_anew(run: RunFolder) -> None:
    for step in (10, 20, 30, 40, 50):
        checkpoint(run, step)
        assert start(run, CRASH)
        assert start(run, CRASH)


def test_a_folder_that_is_no_complete_checkpoint_is_no_progress(run: RunFolder) -> None:
    for step in range(1, 5):
        (run.checkpoints / f"step_{step:06d}").mkdir(parents=True)
    assert [start(run, CRASH) for _ in range(4)] == [True, True, True, False]


def test_the_runs_own_settings_say_how_often(run: RunFolder) -> None:
    write_text(run.config, dump(load(ROOT / "configs" / "lora.yaml", ["health.max_restarts=0"])))
    assert not start(run, CRASH)


def test_stops_between_crashes_do_not_hide_them_and_do_not_count(run: RunFolder) -> None:
    codes = (CRASH, 85, CRASH, 85, CRASH, 85, CRASH)
    assert [start(run, code) for code in codes] == [True] * 6 + [False]


def test_a_job_that_never_gets_to_a_checkpoint_does_not_come_back_for_ever(run: RunFolder) -> None:
    assert [start(run, 85) for _ in range(11)] == [True] * 10 + [False]


def test_another_job_begins_its_own_count(run: RunFolder) -> None:
    for _ in range(4):
        append(run.jobs, {"event": "ended", "job": "12", "restart": 0, "code": CRASH, "step": 0})
    assert start(run, CRASH)


def test_a_start_that_found_a_bad_node_is_no_crash_and_keeps_away_from_it(run: RunFolder) -> None:
    for number in range(5):
        append(run.bad_nodes, {"job": "local", "restart": number, "host": f"node{number}.cluster.org"})
        verdict = after(run.root, 1, {"SLURM_RESTART_COUNT": str(number)})
        assert verdict.again
        assert verdict.exclude == tuple(f"node{other}" for other in range(number + 1))
        ended(run.root, 1, "a test", verdict, {"SLURM_RESTART_COUNT": str(number)})


@pytest.mark.parametrize(
    ("state", "reason", "restarts", "again", "queued"),
    [
        ("RUNNING", "None", 0, True, False),
        ("COMPLETING", "TimeLimit", 0, True, False),
        ("COMPLETING", "None", 0, False, False),  # scancel
        ("COMPLETING", "None", 1, True, True),  # a node died, or the job was evicted
    ],
)
@pytest.mark.parametrize("code", [85, CRASH])
def test_slurm_is_asked_whether_the_job_is_cancelled_or_queued_again_already(
    run: RunFolder,
    monkeypatch: pytest.MonkeyPatch,
    code: int,
    state: str,
    reason: str,
    restarts: int,
    again: bool,
    queued: bool,
) -> None:
    monkeypatch.setattr("launch.after.place", lambda job: Place(state, reason, restarts, ()))
    verdict = after(run.root, code, {"SLURM_JOB_ID": "7"})
    assert (verdict.again, verdict.queued) == (again, queued)


def test_an_end_is_noted_with_how_far_the_run_came(run: RunFolder) -> None:
    checkpoint(run, 10)
    write_text(run.metrics, '{"step": 11}\n{"step": 12}\n{"st')
    assert start(run, CRASH)
    (record,) = read_log(run.jobs)
    known = {"event": "ended", "job": "local", "restart": 0, "code": CRASH, "step": 10, "reached": 12}
    assert {key: record[key] for key in known} == known
    assert record["again"] is True
    assert record["cause"] == "a test"
