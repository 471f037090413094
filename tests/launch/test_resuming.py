"""A run goes on as it was queued: paths in its settings are meant from there, wherever `resume` is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dist_trainer.config import dump, load
from dist_trainer.logs import append
from dist_trainer.rundir import RunFolder
from launch import resuming
from launch.ended.requeue import Place
from launch.queueing.resources import Resources
from shards.errors import InputError
from tests.support.programs import SBATCH, stand_ins
from tests.support.runs import tiny_config, write_config


def test_paths_are_meant_from_where_the_run_was_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    here.mkdir()
    slurm = stand_ins(tmp_path / "bin", monkeypatch, sbatch=SBATCH, squeue="exit 1")
    run = RunFolder(tmp_path / "run")
    run.root.mkdir()
    config = load(write_config(tmp_path / "c.yaml", tiny_config(tmp_path, Path("data"), run.root)))
    run.config.write_text(dump(config))
    asked = Resources(gpus_per_node=0).record()
    append(run.jobs, {"event": "submitted", "job": "1", "resources": asked, "folder": str(there)})
    looked: list[str] = []
    monkeypatch.setattr(resuming, "forecast", lambda config, ranks: looked.append(os.getcwd()))
    monkeypatch.chdir(here)
    resuming.resume(run, {}, [])
    assert looked == [str(there)]
    assert f"#SBATCH --chdir={there}\n" in (slurm / "100.job").read_text()
    assert Path.cwd() == here
    assert str(there) in capsys.readouterr().out
    there.rmdir()
    resuming.resume(run, {}, [])
    assert looked[1] == str(here), "a folder that is gone is not looked for"


def test_a_run_queued_by_a_script_goes_on_with_what_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slurm = stand_ins(tmp_path / "bin", monkeypatch, sbatch=SBATCH, squeue="exit 1")
    run = RunFolder(tmp_path / "run")
    run.root.mkdir()
    config = load(write_config(tmp_path / "c.yaml", tiny_config(tmp_path, tmp_path / "data", run.root)))
    run.config.write_text(dump(config))
    append(run.jobs, {"event": "began", "job": "1", "nodes": ["node1"], "ranks": 1})
    monkeypatch.setattr(resuming, "forecast", lambda config, ranks: None)
    with pytest.raises(InputError, match="none of its jobs was queued by ltx-launch, so say what to ask for"):
        resuming.resume(run, {"nodes": 2}, [])
    resuming.resume(run, {"nodes": 2, "gpus_per_node": 0, "time": "30"}, [])
    script = (slurm / "100.job").read_text()
    assert "#SBATCH --nodes=2\n" in script
    assert "#SBATCH --time=30\n" in script


def test_a_job_that_waits_goes_on_once_stop_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunFolder(tmp_path / "run")
    append(run.jobs, {"event": "submitted", "job": "7"})
    state = {"7": Place("PENDING", "Priority", 0, ())}
    monkeypatch.setattr(resuming, "places", lambda jobs: state)
    assert resuming.let_wait(run) == ""
    (run.root / "STOP").touch()
    assert resuming.let_wait(run) == "7"
    assert not (run.root / "STOP").exists()
    state["7"] = Place("RUNNING", "", 0, ())
    (run.root / "STOP").touch()
    assert resuming.let_wait(run) == ""
    assert (run.root / "STOP").exists()
