"""Saving a run in training, and going on from what was saved."""

from __future__ import annotations

from collections.abc import Iterator

from dist_trainer.config import RunConfig
from dist_trainer.dist import Gathering
from dist_trainer.engine import Engine
from dist_trainer.kept import complete_steps
from dist_trainer.recovery import recover
from dist_trainer.rundir import RunFolder
from dist_trainer.saving import NoRoom, Piece, save
from dist_trainer.skipped import updates
from dist_trainer.stop import Wish
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
    engine.restore(lambda piece: checkpoint.read(piece.name, piece.start, piece.stop), done)
    # A rank that cannot read its part says so before the others wait for it in a collective.
    gathering.meet("checkpoint read")
    engine.publish()
    if gathering.world.is_main:
        print(f"resuming after step {checkpoint.step}", flush=True)
    return checkpoint.step


def save_if_due(
    step: int, wish: Wish, config: RunConfig, engine: Engine, folder: RunFolder, gathering: Gathering
) -> bool:
    """Save where somebody wishes it, or the interval or the run's end does; whether that was done.

    Where there is no room, the run goes on without, and rank 0 says so; but a run that is to stop, or is at its end,
    would lose its steps: it raises InputError, alike on every rank.
    """
    last = step == config.optimization.steps
    interval = config.checkpoints.interval
    if wish is Wish.NONE and not last and (interval is None or step % interval):
        return False

    def pieces() -> Iterator[Piece]:
        for piece in engine.slices():
            yield piece.name, piece.start, piece.stop, engine.read(piece)

    keep = config.checkpoints.keep_last_n
    try:
        save(folder.checkpoints, step, engine.shapes(), pieces(), gathering, keep)
    except NoRoom as error:
        steps = complete_steps(folder.checkpoints)
        before = (
            f"the newest checkpoint is that of step {steps[-1]}" if steps else "there is no checkpoint yet"
        )
        lacking = f"{error}: step {step} is not saved, {before}; make room there"
        if last or wish >= Wish.COME_BACK:
            raise InputError(f"{lacking}, and start the same command again") from error
        if gathering.world.is_main:
            again = f"after step {step - step % interval + interval}" if interval else "at its end"
            print(f"{lacking}: the run goes on and tries again {again}", flush=True)
        return False
    return True
