"""What becomes of a job that has ended, from what the run's folder says of its starts before."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.config import dump, load
from dist_trainer.logs import append, read_log
from dist_trainer.rundir import RunFolder, write_text
from launch.ended.after import Verdict, after, bad_hosts, began, ended, refusal
from launch.ended.requeue import Place
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


def test_a_start_that_found_a_bad_node_is_no_crash_and_keeps_away_from_it(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.ended.after.place", lambda job: Place("RUNNING", "None", number))
    for number in range(5):
        environ = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(number)}
        began(run.root, [f"node{number}"], 1, environ)
        append(run.bad_nodes, {"job": "7", "restart": number, "host": f"node{number}.cluster.org"})
        verdict = after(run.root, 1, environ)
        assert verdict.again
        assert verdict.exclude == tuple(f"node{other}" for other in range(number + 1))
        assert f"delete its lines in {run.bad_nodes}" in verdict.why
        ended(run.root, 1, "a test", verdict, environ)


def test_a_bad_node_that_the_cluster_has_no_more_is_left_out(
    run: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.ended.after.place", lambda job: Place("RUNNING", "None", 0))
    monkeypatch.setattr("launch.ended.after.gone", lambda hosts: {"node2"})
    began(run.root, ["node1", "node2"], 2, {"SLURM_JOB_ID": "7"})
    for host in ("node1", "node2"):
        append(run.bad_nodes, {"job": "7", "restart": 0, "host": host})
    verdict = after(run.root, 1, {"SLURM_JOB_ID": "7"})
    assert verdict.exclude == ("node1",)
    assert "keeps away from node1," in verdict.why
    assert "need not keep away from node2, not in the cluster any more" in verdict.why


def test_bad_nodes_have_the_names_that_slurm_has_for_them(run: RunFolder) -> None:
    began(run.root, ["node1", "node2.a.org", "node3"], 3, {"SLURM_JOB_ID": "7"})
    began(run.root, ["desk"], 1, {})
    for host in ("node1.a.org", "node2.a.org", "renamed"):
        append(run.bad_nodes, {"job": "7", "restart": 0, "host": host})
    for host in ("desk", "node3"):
        append(run.bad_nodes, {"job": "local", "restart": 0, "host": host})
    assert bad_hosts(run) == ("node1", "node2.a.org")


def test_a_job_whose_starts_take_their_nodes_along_does_not_begin_for_ever(run: RunFolder) -> None:
    def starts(job: str) -> int:
        for number in range(100):
            environ = {"SLURM_JOB_ID": job, "SLURM_RESTART_COUNT": str(number)}
            if refusal(run.root, environ):
                return number
            began(run.root, ["node1"], 1, environ)
            assert not refusal(run.root, environ), "what it says of itself does not count"
        return 100

    assert starts("7") == 20
    assert starts("8") == 20
    checkpoint(run, 10)
    assert not refusal(run.root, {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": "20"})
    assert "began 20 times" in refusal_after(run)


def refusal_after(run: RunFolder) -> str:
    """What a job is told that has begun 20 times since the newest checkpoint."""
    for number in range(20):
        began(run.root, ["node1"], 1, {"SLURM_JOB_ID": "9", "SLURM_RESTART_COUNT": str(number)})
    return refusal(run.root, {"SLURM_JOB_ID": "9", "SLURM_RESTART_COUNT": "20"})


def test_an_end_that_cannot_be_noted_is_said_and_no_error(
    run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    run.jobs.mkdir(parents=True)
    ended(run.root, CRASH, "a test", Verdict(True, "why"), JOB)
    said = capsys.readouterr().out
    assert said.startswith(f"error: {run.jobs}: cannot be written")
    assert said.count("\n") == 1


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
    monkeypatch.setattr("launch.ended.after.place", lambda job: Place(state, reason, restarts, ()))
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
    assert record["why"].startswith("crash 1 ")
