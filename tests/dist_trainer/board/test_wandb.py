"""The sink for Weights & Biases, by the real package in its offline mode."""

from __future__ import annotations

import importlib.util
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from dist_trainer.board.moving import animated
from dist_trainer.board.wandb import Wandb
from dist_trainer.config.output import WandbConfig
from dist_trainer.limit import limited
from dist_trainer.rundir import RunFolder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("wandb") is None, reason="wandb is not installed: pip install wandb"
)


def records(folder: Path) -> str:
    """Everything an offline run has written, as text."""
    return "\n".join(path.read_bytes().decode(errors="replace") for path in sorted(folder.rglob("*.wandb")))


def test_figures_texts_and_videos_are_written_and_a_run_goes_on_under_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run = RunFolder(tmp_path)
    config = WandbConfig(enabled=True, project="a-project", tags=("red", "blue"))
    ids = []
    for step in (1, 2):
        sink = Wandb(config, run)
        sink.text("card", "a card of the model")
        sink.settings({"seed": 7}, ("train/loss",))
        sink.lengths("data/tokens", np.array([1, 2, 3]))
        sink.figures(step, {"train/loss": 0.5 * step})
        sink.video("samples/a", animated(np.zeros((3, 8, 8, 3), np.uint8), 10), step)
        limited(partial(sink.close, step == 2), 60.0)  # in a thread of its own, as the board does
        ids.append((tmp_path / "wandb_id").read_text())
    assert ids[0] == ids[1]
    written = records(tmp_path)
    for said in ("a-project", "red", "train/loss", "a card of the model", "data/tokens", "samples/a"):
        assert said in written, said
    assert len(list(tmp_path.rglob("*.wandb"))) == 2
