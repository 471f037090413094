"""A run goes on as it was queued: paths in its settings are meant from there, wherever `resume` is called."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from dist_trainer.config import dump, load
from dist_trainer.rundir import RunFolder, append
from launch import resuming
from launch.resources import Resources
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
    resuming.resume(run, None, [])
    assert looked == [str(there)]
    assert f"#SBATCH --chdir={there}\n" in (slurm / "100.job").read_text()
    assert Path.cwd() == here
    assert str(there) in capsys.readouterr().out
    there.rmdir()
    resuming.resume(run, None, [])
    assert looked[1] == str(here), "a folder that is gone is not looked for"
