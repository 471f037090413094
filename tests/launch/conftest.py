"""A run that `ltx-launch local` has trained to its end, in two processes; once a session."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from shards.dataset.opened import Dataset
from tests.support.launched import INTERVAL, STEPS, Launched, ltx_launch
from tests.support.runs import tiny_config, write_config


@pytest.fixture(scope="session")
def launched(
    model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Launched:
    """Read-only."""
    root = tmp_path_factory.mktemp("launched")
    blocks = {
        "optimization": {"steps": STEPS},
        "checkpoints": {"interval": INTERVAL, "keep_last_n": 2},
        "health": {"preflight": False},
    }
    config = write_config(
        root / "config.yaml", tiny_config(model_folder, paired_dataset.root, root / "run", **blocks)
    )
    done = ltx_launch("local", config, "-n", "2")
    return Launched(root / "run", config, done.returncode, done.stdout + done.stderr)


@pytest.fixture
def run(launched: Launched, tmp_path: Path) -> Path:
    """A copy of that run's folder, to change."""
    return Path(shutil.copytree(launched.folder, tmp_path / "run"))
