"""Saving a run in training, and going on from what was saved."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from dist_trainer.checkpoint import newest, open_checkpoint, point_latest, save
from dist_trainer.config import RunConfig
from dist_trainer.dist import Gathering
from dist_trainer.engine import Engine
from dist_trainer.rundir import RunFolder
from shards.errors import InputError


def resume(engine: Engine, folder: RunFolder, gathering: Gathering) -> int:
    """Load the newest complete checkpoint, the same on every rank, and return its step (0: none)."""
    found = newest(folder.checkpoints) if gathering.world.is_main else None
    step = int(gathering.share("resume from", str(found.step if found else 0)))
    if not step:
        return 0
    checkpoint = open_checkpoint(folder.checkpoints, step)
    if checkpoint.shapes != engine.shapes():
        raise InputError(
            f"{checkpoint.folder}: holds other parameters than this config trains (rank, targets?)"
        )
    engine.restore(lambda piece: checkpoint.read(piece.name, piece.start, piece.stop), step)
    # A rank that cannot read its part says so before the others wait for it in a collective.
    gathering.meet("checkpoint read")
    engine.publish()
    if gathering.world.is_main:
        point_latest(folder.checkpoints, step)
        print(f"resuming after step {step}", flush=True)
    return step


def save_if_due(
    step: int, asked: bool, config: RunConfig, engine: Engine, folder: RunFolder, gathering: Gathering
) -> bool:
    """Save where somebody has `asked`, or the interval or the run's end does; whether that was so."""
    interval = config.checkpoints.interval
    if not asked and step != config.optimization.steps and (interval is None or step % interval):
        return False

    def pieces() -> Iterator[tuple[str, int, int, dict[str, torch.Tensor]]]:
        for piece in engine.slices():
            yield piece.name, piece.start, piece.stop, engine.read(piece)

    save(folder.checkpoints, step, engine.shapes(), pieces(), gathering, config.checkpoints.keep_last_n)
    return True
