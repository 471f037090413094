"""A job's place in Slurm's queue, read from and changed by `scontrol`, which here is a stand-in that keeps notes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from launch.ended import requeue
from shards.errors import InputError

SHOW = "JobId=7 JobName=ltx {} Dependency=(null) Requeue=1 Restarts={} BatchFlag=1 ReqNodeList=(null) ExcNodeList={} \n"
SCONTROL = """#!/bin/bash
echo "$*" >> "{folder}/calls"
if [ -f "{folder}/fails" ]; then cat "{folder}/fails" >&2; rm "{folder}/fails"; exit 1; fi
case $1 in
  requeue | update) if [ -f "{folder}/late" ]; then mv "{folder}/late" "{folder}/job"
      echo "Socket timed out on send/recv operation" > "{folder}/fails"; cat "{folder}/fails" >&2; exit 1; fi ;;
  show) case $2 in
      job) cat "{folder}/job" ;;
      node) echo "$3" | tr , '\\n' | grep -xFf "{folder}/gone" | sed 's/.*/Node & not found/'; exit 1 ;;
      *) echo "$3" | tr , '\\n' ;;
    esac ;;
esac
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with `job`, which says what Slurm does of job 7, and `calls`, what was asked of it."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(SCONTROL.format(folder=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    monkeypatch.setattr(requeue, "_PAUSE_S", 0.0)
    is_job(tmp_path)
    (tmp_path / "gone").touch()
    return tmp_path


def is_job(
    slurm: Path, state: str = "JobState=RUNNING Reason=None", restarts: int = 0, excluded: str = "(null)"
) -> None:
    """What Slurm says of job 7."""
    (slurm / "job").write_text(SHOW.format(state, restarts, excluded))


def changes(slurm: Path) -> list[str]:
    """What was asked of Slurm beside questions."""
    return [line for line in (slurm / "calls").read_text().splitlines() if not line.startswith("show")]


@pytest.mark.parametrize(
    ("state", "ours"),
    [
        ("JobState=RUNNING Reason=None", True),
        ("JobState=COMPLETING Reason=TimeLimit", True),
        ("JobState=COMPLETING Reason=None", False),  # cancelled
        ("JobState=CANCELLED Reason=None", False),
    ],
)
def test_a_job_that_is_being_cancelled_is_told_from_one_whose_time_is_over(
    slurm: Path, state: str, ours: bool
) -> None:
    is_job(slurm, state, restarts=3)
    place = requeue.place("7")
    assert place.ours is ours
    assert place.restarts == 3


def test_a_task_of_an_array_is_not_taken_for_the_whole_array() -> None:
    array = {"SLURM_JOB_ID": "12", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}
    assert requeue.queued_as(array) == "12_3"
    assert requeue.queued_as({"SLURM_JOB_ID": "13"}) == "13"


def test_a_job_is_queued_again_first_and_then_keeps_away(slurm: Path) -> None:
    requeue.requeue("7", ["node4", "node2"])
    assert changes(slurm) == ["requeue 7", "update JobId=7 ExcNodeList=node2,node4"]


def test_a_job_that_was_cancelled_just_now_is_left_alone(slurm: Path) -> None:
    is_job(slurm, "JobState=COMPLETING Reason=None")
    with pytest.raises(InputError, match="cancelled"):
        requeue.requeue("7", ["node2"])
    assert changes(slurm) == []


def test_what_slurm_did_but_was_late_to_say_is_done(slurm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requeue, "_TRIES", 2)
    is_job(slurm, restarts=1)
    (slurm / "job").rename(slurm / "late")
    is_job(slurm)
    requeue.requeue("7", ["node2"])
    assert changes(slurm) == ["requeue 7", "requeue 7", "update JobId=7 ExcNodeList=node2"]
    is_job(slurm, excluded="node2,node3")
    (slurm / "job").rename(slurm / "late")
    is_job(slurm, excluded="node2")
    requeue.keep_away("7", ["node3"])
    is_job(slurm)
    shutil.copy(slurm / "job", slurm / "late")
    with pytest.raises(InputError, match="timed out"):
        requeue.requeue("7")


def test_what_a_job_keeps_away_from_already_stays(slurm: Path) -> None:
    is_job(slurm, excluded="node2,node9")
    requeue.keep_away("7", ["node2", "node3"])
    assert changes(slurm) == ["update JobId=7 ExcNodeList=node2,node9,node3"]


def test_hosts_that_the_cluster_has_no_more_are_left_out(slurm: Path) -> None:
    (slurm / "gone").write_text("node8\nnode9\n")
    is_job(slurm, excluded="node2,node8")
    requeue.keep_away("7", ["node3", "node9"])
    requeue.keep_away("7", ["node2", "node9"])
    assert changes(slurm) == ["update JobId=7 ExcNodeList=node2,node3"]


def test_nothing_is_asked_for_where_nothing_is_new(slurm: Path) -> None:
    is_job(slurm, excluded="node2")
    requeue.keep_away("7", ["node2"])
    assert changes(slurm) == []


@pytest.mark.parametrize(
    "error",
    [
        "Unable to contact slurm controller (connect failure)",
        "Socket timed out on send/recv operation",
        "Zero Bytes were transmitted or received",
    ],
)
def test_a_controller_that_is_away_or_busy_is_asked_again(slurm: Path, error: str) -> None:
    (slurm / "fails").write_text(f"slurm_load_jobs error: {error}")
    assert requeue.place("7").state == "RUNNING"


def test_a_refusal_is_one_line(slurm: Path) -> None:
    (slurm / "fails").write_text("Invalid job\nid specified")
    with pytest.raises(InputError, match=r"^scontrol show job --oneliner 7: Invalid job id specified$"):
        requeue.place("7")


def test_what_asks_slurm_outlives_the_signal_that_ends_its_job(slurm: Path) -> None:
    program = slurm / "bin" / "scontrol"
    program.write_text(program.read_text().replace("case $1", "kill -TERM $$; sleep 0.1\ncase $1", 1))
    is_job(slurm)
    requeue.requeue("7", ["node3"])
    assert changes(slurm) == ["requeue 7", "update JobId=7 ExcNodeList=node3"]
