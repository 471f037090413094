"""The held-out loss of a run: measured when it is due, and where the figures go."""

from __future__ import annotations

import time
from dataclasses import dataclass

from dist_trainer.begun import Begun
from dist_trainer.build import Data, dtype_of, open_reader
from dist_trainer.config import RunConfig
from dist_trainer.dist import Gathering
from dist_trainer.feed.holdout import chosen
from dist_trainer.figures.metrics import forget_peak
from dist_trainer.logs import records
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import Wish
from dist_trainer.validation.asked import asked
from dist_trainer.validation.due import heldout_due
from dist_trainer.validation.heldout import Heldout
from dist_trainer.watch import progress
from dist_trainer.world import World
from shards.dataset.opened import Dataset
from shards.reader import Reader

LOSS = "heldout/loss"


@dataclass(frozen=True)
class Measuring:
    """Measures the held-out loss of a run, and that of the weights' running mean where there is one.

    `measured`: the step that the run goes on from, if it was measured there.
    """

    run: Begun
    heldout: Heldout
    measured: int | None

    def at(self, step: int) -> Wish:
        """Measure after a step where that is due; all ranks together.

        Returns, alike on every rank, COME_BACK or STOP where that was asked for on the way: then the step is measured
        when the run comes back.
        """
        if step == self.measured or not heldout_due(self.run.config, step):
            return Wish.NONE
        progress.doing("measuring the held-out loss")
        began, wish = time.perf_counter(), Wish.NONE
        dtype = dtype_of(self.run.config)

        def go_on() -> bool:
            nonlocal wish
            wish = asked(self.run.requests, self.run.engine.world.device)
            return wish < Wish.COME_BACK

        found = self.heldout.figures(self.run.engine, dtype, "heldout", go_on)
        if found is not None and self.run.ema:
            with self.run.ema.shown():
                averaged = self.heldout.figures(self.run.engine, dtype, "heldout_ema", go_on)
            found = None if averaged is None else found | averaged
        if found is None:
            return wish
        if self.run.board:
            self.run.board.figures(step, {**found, "time/heldout_s": time.perf_counter() - began})
            if LOSS in found:
                print(f"step {step}: held-out loss {found[LOSS]:.4f}", flush=True)
        forget_peak()
        return Wish.NONE


def open_heldout(config: RunConfig, dataset: Dataset, data: Data, world: World) -> tuple[Heldout, Reader]:
    """What measures on a held-out dataset, and the reader to close at the end."""
    some = chosen(dataset, config.seed, config.validation.holdout_samples)
    reader = open_reader(config, some)
    return Heldout(some, reader, data.feeding, world), reader


def measured_at(folder: RunFolder, start: int, gathering: Gathering) -> int | None:
    """`start`, where an earlier launch has measured there; None where not. Rank 0 reads, the others hear of it."""
    done = False
    if gathering.world.is_main:
        done = any(line["step"] == start and LOSS in line for line in records(folder.figures, start))
    return start if gathering.share("held-out loss", str(done)) == "True" else None
