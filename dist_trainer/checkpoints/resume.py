"""Going on from what a run has saved."""

from __future__ import annotations

import torch

from dist_trainer.checkpoints.recovery import recover
from dist_trainer.dist import Gathering
from dist_trainer.model.engine import Engine, Slice
from dist_trainer.rundir import RunFolder
from dist_trainer.skipped import updates
from dist_trainer.watch import progress
from shards.errors import InputError


def resume(engine: Engine, folder: RunFolder, gathering: Gathering) -> int:
    """Load the newest good checkpoint, the same on every rank, and return its step (0: none)."""
    checkpoint = recover(folder.checkpoints, gathering)
    if checkpoint is None:
        return 0
    if checkpoint.shapes != engine.shapes():
        raise InputError(
            f"{checkpoint.folder}: holds other parameters than this config trains (rank, targets?)"
        )
    done = updates(folder, checkpoint.step, gathering)

    def read(piece: Slice) -> dict[str, torch.Tensor]:
        progress.moved()
        return checkpoint.read(piece.name, piece.start, piece.stop)

    engine.restore(read, done)
    # A rank that cannot read its part says so before the others wait for it in a collective.
    gathering.meet("checkpoint read")
    engine.publish()
    if gathering.world.is_main:
        print(f"resuming after step {checkpoint.step}", flush=True)
    return checkpoint.step
