"""Fixtures of the trainer's tests: a world of one, and runs that have been trained to their end."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.dataset.opened import Dataset
from tests.support.runs import lora_blocks, tiny_config, train, write_config


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process as the only rank, with torch.distributed running; everything as before afterwards."""
    from dist_trainer.dist import join, leave
    from dist_trainer.world import World

    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        # Set and deleted, so that monkeypatch takes away what join() sets.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    join(World(0, 1, 0), 20)
    yield
    leave()


@pytest.fixture(scope="session")
def finished_runs(
    model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Folder of runs on one process: full and ic_lora of two steps, still, which trains at learning rate 0."""
    root = tmp_path_factory.mktemp("finished")
    kept = {"interval": 1, "keep_last_n": -1}
    runs = {
        "full": {"optimization": {"steps": 2}, "checkpoints": kept},
        "ic_lora": {**lora_blocks(reference=True), "optimization": {"steps": 2, "learning_rate": 0.05}},
        "still": {"optimization": {"steps": 1, "learning_rate": 0.0}},
    }
    configs = [
        write_config(
            root / f"{name}.yaml", tiny_config(model_folder, paired_dataset.root, root / name, **blocks)
        )
        for name, blocks in runs.items()
    ]
    train(1, *configs, logs=root / "logs")
    return root


@pytest.fixture
def full(finished_runs: Path, tmp_path: Path) -> Path:
    """A copy of a full run of two steps with a checkpoint of each."""
    return Path(shutil.copytree(finished_runs / "full", tmp_path / "full"))


@pytest.fixture
def ic_lora(finished_runs: Path, tmp_path: Path) -> Path:
    """A copy of an IC-LoRA run of two steps."""
    return Path(shutil.copytree(finished_runs / "ic_lora", tmp_path / "ic_lora"))
