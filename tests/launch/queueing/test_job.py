"""The callables that submitit keeps: they come back as what they are, and saving is not theirs."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import cloudpickle
import pytest

from launch.queueing import job
from launch.queueing.job import Command, Training


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a module that a command runs."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path / "stage.py"


@pytest.mark.parametrize("task", [Training("/runs/a", "/runs/a/snapshots/1"), Command("stage", ("a",))])
def test_what_is_queued_again_is_the_same(task: Training | Command) -> None:
    kept = pickle.loads(cloudpickle.dumps(task.checkpoint()))
    assert kept.function == task
    assert not kept.done()


def test_a_command_ends_its_job_with_its_own_code(stage: Path) -> None:
    stage.write_text("import sys; sys.exit(int(sys.argv[1]))")
    Command("stage", ("0",))()
    with pytest.raises(SystemExit) as end:
        Command("stage", ("3",))()
    assert end.value.code == 3


def test_a_command_that_slurm_ends_waits_to_be_ended_itself(
    stage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[float] = []
    monkeypatch.setattr(job.time, "sleep", waited.append)
    stage.write_text("import os, sys; os.kill(os.getpid(), int(sys.argv[1]))")
    for number, waits in ((12, True), (15, True), (9, False)):
        waited.clear()
        with pytest.raises(SystemExit) as end:
            Command("stage", (str(number),))()
        assert end.value.code == 128 + number
        assert bool(waited) == waits


def test_the_export_of_a_run_is_left_out_where_it_was_stopped_before_its_end_or_has_exported_itself(
    stage: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stage.write_text("import sys; sys.exit(3)")
    run = tmp_path / "run"
    export = Command("stage", (), done=str(run))
    export()
    said = capsys.readouterr().out
    assert said.startswith(f"{run}: stopped after step 0, so this stage exports nothing; ")
    assert said.endswith(f"ltx-launch resume {run}\n")
    (run / "checkpoints" / "step_000007").mkdir(parents=True)
    (run / "checkpoints" / "step_000007" / "checkpoint.json").write_text("{}")
    export()
    assert capsys.readouterr().out.endswith("or export what there is: ltx-train export " + f"{run}\n")
    exported = run / "exports" / "step_000007"
    exported.mkdir(parents=True)
    export()
    assert capsys.readouterr().out == (
        f"{run}: stopped after step 7, whose weights are in {exported} already; to go on: ltx-launch resume {run}\n"
    )
    os.utime(exported, (0, 0))
    export()
    assert "so this stage exports nothing" in capsys.readouterr().out, (
        "it is of another checkpoint of that step"
    )
    exported.rmdir()
    (run / "DONE").write_text("7\n")
    with pytest.raises(SystemExit) as end:
        export()
    assert end.value.code == 3
    exported.mkdir(parents=True)
    capsys.readouterr()
    export()
    assert capsys.readouterr().out == f"{run}/exports/step_000007: written by the training at its end\n"
