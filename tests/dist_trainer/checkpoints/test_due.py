"""When a run saves, and that the logs of the steps before are on disk by then."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from dist_trainer.checkpoints.due import save_if_due
from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.config import RunConfig
from dist_trainer.model.engine import Engine, Slice
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import Wish
from tests.support.gatherings import in_memory


class OneWeight:
    """What a save asks of an engine, of a model of one weight."""

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {"scale": (1,)}

    def slices(self) -> Iterator[Slice]:
        yield Slice("scale", 0, 1)

    def read(self, piece: Slice) -> dict[str, torch.Tensor]:
        return {"master": torch.ones(1)}


@pytest.mark.parametrize(
    ("step", "wish", "due"),
    [
        (3, Wish.NONE, False),
        (4, Wish.NONE, True),
        (5, Wish.SAVE, True),
        (5, Wish.STOP, True),
        (9, Wish.NONE, True),
    ],
)
def test_the_logs_are_brought_to_disk_before_each_checkpoint_and_at_no_other_step(
    tmp_path: Path, step: int, wish: Wish, due: bool
) -> None:
    """A checkpoint implies the lines of all steps up to its own, also after a power cut."""
    folder, blocks = RunFolder(tmp_path), {"optimization": {"steps": 9}, "checkpoints": {"interval": 4}}
    quiet: dict[str, Any] = {"data": {"preprocessed_data_root": "d"}, "lora": {}}
    config, engine = RunConfig.model_validate(quiet | blocks), cast("Engine", OneWeight())
    [gathering] = in_memory(1)
    synced: list[list[int]] = []
    saved = save_if_due(
        step,
        wish,
        config,
        engine,
        None,
        folder,
        gathering,
        lambda: synced.append(complete_steps(folder.checkpoints)),
    )
    assert saved == due
    assert synced == ([[]] if due else [])
    assert complete_steps(folder.checkpoints) == ([step] if due else [])
