"""Going on from what a run has saved."""

from __future__ import annotations

import torch

from dist_trainer.checkpoints.checkpoint import EMA, Checkpoint
from dist_trainer.checkpoints.recovery import recover
from dist_trainer.dist import Gathering
from dist_trainer.model.ema import Ema
from dist_trainer.model.engine import Engine, Slice
from dist_trainer.rundir import RunFolder
from dist_trainer.skipped import updates
from dist_trainer.watch import progress
from shards.errors import InputError


def resume(engine: Engine, ema: Ema | None, folder: RunFolder, gathering: Gathering) -> int:
    """Load the newest good checkpoint, the same on every rank, and return its step (0: none)."""
    checkpoint = recover(folder.checkpoints, gathering)
    if checkpoint is None:
        return 0
    if checkpoint.shapes != engine.shapes():
        raise InputError(
            f"{checkpoint.folder}: holds other parameters than this config trains (rank, targets?)"
        )
    done = updates(folder, checkpoint.step, gathering)

    kinds = tuple(kind for kind in checkpoint.kinds if kind != EMA)
    engine.restore(lambda piece: _read(checkpoint, piece, kinds), done)
    averaged = EMA in checkpoint.kinds
    if ema:
        ema.restore((lambda piece: _read(checkpoint, piece, (EMA,))[EMA]) if averaged else None)
    # A rank that cannot read its part says so before the others wait for it in a collective.
    gathering.meet("checkpoint read")
    engine.publish()
    if gathering.world.is_main:
        print(f"resuming after step {checkpoint.step}", flush=True)
        if ema and not averaged:
            print(
                "note: optimization.ema_decay: the checkpoint has no EMA; it begins as the weights are now",
                flush=True,
            )
    return checkpoint.step


def _read(checkpoint: Checkpoint, piece: Slice, kinds: tuple[str, ...]) -> dict[str, torch.Tensor]:
    progress.moved()
    return checkpoint.read(piece.name, piece.start, piece.stop, kinds)
