"""The callables that submitit keeps: they come back as what they are, and saving is not theirs."""

from __future__ import annotations

import pickle
import sys

import cloudpickle
import pytest

from launch import job
from launch.job import Command, Training


@pytest.mark.parametrize("task", [Training("/runs/a", "/runs/a/snapshots/1"), Command(("true",))])
def test_what_is_queued_again_is_the_same(task: Training | Command) -> None:
    kept = pickle.loads(cloudpickle.dumps(task.checkpoint()))
    assert kept.function == task
    assert not kept.done()


def test_a_command_ends_its_job_with_its_own_code() -> None:
    Command((sys.executable, "-c", "pass"))()
    with pytest.raises(SystemExit) as end:
        Command((sys.executable, "-c", "raise SystemExit(3)"))()
    assert end.value.code == 3


def test_a_command_that_slurm_ends_waits_to_be_ended_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(job.time, "sleep", waited.append)
    for number, waits in ((12, True), (15, True), (9, False)):
        waited.clear()
        with pytest.raises(SystemExit) as end:
            Command((sys.executable, "-c", f"import os; os.kill(os.getpid(), {number})"))()
        assert end.value.code == 128 + number
        assert bool(waited) == waits
