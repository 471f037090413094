"""What is as on a CPU, and what holds in bf16, where there is a GPU: `CUDA_VISIBLE_DEVICES=0 pytest` runs these."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shards.dataset.opened import Dataset
from tests.support.audit import assert_same_run
from tests.support.runs import ROOT, environment, lora_blocks, losses, tiny_config, write_config

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.timeout(900),
]
STEPS = 8
BF16 = {"mixed_precision_mode": "bf16", "compile_with_inductor": False}
ON_GPU = {"CUDA_VISIBLE_DEVICES": "0", "DS_ACCELERATOR": "cuda"}


class Runs:
    """Tiny LoRA runs of one rank, each in a folder of its own."""

    def __init__(self, root: Path, model: Path, data: Path) -> None:
        self._root, self._model, self._data = root, model, data

    def __call__(self, name: str, environ: dict[str, str], **blocks: Any) -> Path:
        """Train, on from what is in the run's folder; the folder."""
        run = self._root / name
        described = tiny_config(
            self._model,
            self._data,
            run,
            **{**lora_blocks(), "optimization": {"steps": STEPS, "learning_rate": 1e-3}, **blocks},
        )
        config = write_config(self._root / f"{name}.yaml", described)
        command = [sys.executable, "-m", "dist_trainer.train", str(config)]
        done = subprocess.run(
            command, env=environment(**environ), cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return run


@pytest.fixture
def train(tmp_path: Path, model_folder: Path, paired_dataset: Dataset) -> Runs:
    return Runs(tmp_path, model_folder, Path(paired_dataset.root))


def test_float32_losses_are_those_of_the_cpu(train: Runs) -> None:
    assert losses(train("gpu", ON_GPU)) == pytest.approx(losses(train("cpu", {})), rel=1e-5)


def test_a_resumed_run_in_bf16_is_the_one_not_disturbed_to_the_bit(train: Runs) -> None:
    blocks = {"acceleration": BF16, "checkpoints": {"interval": STEPS // 2, "keep_last_n": 2}}
    whole = train("whole", ON_GPU, **blocks)
    cut = Path(shutil.copytree(whole, whole.with_name("cut")))
    shutil.rmtree(cut / "checkpoints" / f"step_{STEPS:06d}")
    (cut / "DONE").unlink()
    assert_same_run(train("cut", ON_GPU, **blocks), whole)


def test_the_stage_changes_rounding_alone(train: Runs) -> None:
    expected = losses(train("stage_3", ON_GPU, acceleration=BF16))
    for stage in (1, 2):
        found = train(f"stage_{stage}", ON_GPU, acceleration=BF16, deepspeed={"stage": stage})
        assert losses(found) == pytest.approx(expected, rel=1e-2)
