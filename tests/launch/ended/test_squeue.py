"""What Slurm says of jobs: of those its controller has forgotten its accounts, under either name of an array's task."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.ended.requeue import Place
from launch.ended.squeue import places
from tests.support.programs import stand_ins

TIME = "$([ $SLURM_TIME_FORMAT = standard ] && echo 2030-01-01T00:00:00 || echo soon)"


def test_times_are_slurm_s_own_whatever_the_user_likes_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_TIME_FORMAT", "relative")
    stand_ins(tmp_path, monkeypatch, squeue=f'echo "7|7|RUNNING|None|{TIME}|{TIME}|node1"')
    time = "2030-01-01T00:00:00"
    assert places(["7"]) == {"7": Place("RUNNING", "", start=time, end=time, nodes="node1")}


def test_accounts_know_a_task_by_both_its_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accounts = """echo "12_0|13|CANCELLED by 5|Unknown|2030-01-01T00:00:00|None assigned"
echo "14|14|COMPLETED|||node1"
"""
    stand_ins(tmp_path, monkeypatch, squeue="exit 1", sacct=accounts)
    found = places(["13", "14"])
    assert (found["13"].state, found["13"].start, found["13"].nodes) == ("CANCELLED", "", "")
    assert found["14"].nodes == "node1"
    assert places(["12_0"])["12_0"] == found["13"]
