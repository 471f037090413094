from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from dist_trainer.config import load
from dist_trainer.preflight.room import checkpoint_bytes, room


@pytest.mark.parametrize(("name", "step"), [("full", 2), ("ic_lora", 2)])
def test_a_checkpoint_weighs_what_is_foretold(finished_runs: Path, name: str, step: int) -> None:
    foretold = checkpoint_bytes(load(finished_runs / f"{name}.yaml"))
    files = (finished_runs / name / "checkpoints" / f"step_{step:06d}").glob("*.safetensors")
    weighs = sum(file.stat().st_size for file in files)
    names = 64 << 10  # of the tensors, before their bytes
    assert foretold < weighs < foretold + names


def test_what_is_to_come_is_what_is_kept_and_one_more(finished_runs: Path, tmp_path: Path) -> None:
    def parts(*overrides: str) -> float:
        found = room(load(finished_runs / "full.yaml", [f"output_dir={tmp_path}/new/run", *overrides]))
        assert abs(found["free"] / shutil.disk_usage(tmp_path).free - 1) < 0.1
        return found["all"] / found["one"]

    steps = ("optimization.steps=100", "checkpoints.interval=10")
    assert parts(*steps, "checkpoints.keep_last_n=2") == 3
    assert parts(*steps, "checkpoints.keep_last_n=-1") == 11
    assert parts("checkpoints.interval=null") == 1
