"""The loop: fed micro-steps in, optimizer steps out. It knows no DeepSpeed, no launcher and no file format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from dist_trainer.build import Data
from dist_trainer.feed.collate import Pack
from dist_trainer.feed.feed import Fed
from dist_trainer.figures.gauge import Gauge, faults
from dist_trainer.figures.metrics import StepMetrics, StepSums
from dist_trainer.model.engine import Engine
from dist_trainer.model.loss import sample_sums
from dist_trainer.replaced import Ledger
from dist_trainer.skipped import Skips
from dist_trainer.stop import Requests, Wish
from dist_trainer.watch import progress
from shards.errors import DamagedSample
from shards.hashing import mix


@dataclass(frozen=True)
class Events:
    """What happens around a step: its learning rate, who is told when it is done, who saves, who looks at the model.

    `on_save` gets what is asked, and returns what is asked when it has ended; alike on every rank. So does
    `on_validate`, which comes after it, and before the first step. `start` is the step the run goes on from, `steps`
    the last one.
    """

    learning_rate: Callable[[int], float]
    on_step: Callable[[StepMetrics], None]
    on_save: Callable[[int, Wish], Wish]
    on_validate: Callable[[int], Wish]
    start: int
    steps: int


def train(
    engine: Engine,
    fed: Iterator[Fed],
    data: Data,
    gauge: Gauge,
    ledger: Ledger,
    skips: Skips,
    events: Events,
    requests: Requests,
    dtype: torch.dtype,
) -> Wish:
    """Run until `fed` ends, or all ranks agree to stop; returns COME_BACK or STOP then, else NONE.

    A step is checked on all ranks before its update is applied, which is left out where its loss or its gradient norm
    is not finite.

    Raises, alike on every rank, RuntimeError when a sample was not trained exactly once, and InputError when the run
    has met more damaged samples than it may, or skipped more steps one after the other.
    """
    requests.begin()
    if (wish := events.on_validate(events.start)) >= Wish.COME_BACK:
        return wish
    began = time.perf_counter()
    waited = 0.0
    sums: StepSums | None = None
    damaged: dict[int, DamagedSample] = {}
    for item, wait_s in _timed(fed):
        step = item.micro.step
        progress.at(step.index + 1, item.micro.index + 1)
        if sums is None:
            sums = StepSums(len(step.rows), engine.world.size, engine.world.rank, engine.world.device)
        waited += wait_s
        ledger.tell(engine.world.rank, item.damaged)
        damaged.update(item.damaged)
        # For lora.dropout, the one thing drawn by rank: a resumed run draws it as the uninterrupted one would have.
        torch.manual_seed(int(mix(data.plan.seed, step.index, item.micro.index, engine.world.rank)))
        _micro_step(engine, item, sums, dtype)
        if not item.micro.last:
            continue
        reduced = sums.reduce(waited, engine.clock.take(), requests.wish())
        reduced.check(step, data.dataset.manifest.keys)
        replaced = ledger.settle(step, reduced.rows, damaged)
        learning_rate = events.learning_rate(step.index)
        norm = engine.step(learning_rate)
        skipped = skips.settle(step, reduced.rows, reduced.losses, norm)
        elapsed = time.perf_counter() - began
        figures = gauge.figures(item.micro, reduced, elapsed)
        figures |= faults(step, skips, skipped, ledger, replaced)
        figures |= {"train/learning_rate": learning_rate, "train/grad_norm": norm}
        ids, epochs = data.dataset.manifest.ids[reduced.rows].tolist(), step.epochs.tolist()
        events.on_step(StepMetrics(step.index + 1, epochs, ids, figures, replaced, skipped))
        skips.check()
        requests.stepped(elapsed)
        wish = events.on_save(step.index + 1, reduced.wish)
        if wish >= Wish.COME_BACK and step.index + 1 < events.steps:
            return wish
        if (wish := events.on_validate(step.index + 1)) >= Wish.COME_BACK:
            return wish
        began, waited, sums, damaged = time.perf_counter(), 0.0, None, {}
    return Wish.NONE


def _micro_step(engine: Engine, item: Fed, sums: StepSums, dtype: torch.dtype) -> None:
    pack: Pack = item.pack.to(engine.world.device, dtype, non_blocking=True)
    errors = sample_sums(engine.forward(*pack.inputs()), pack)
    weighted = errors * pack.weights
    # DeepSpeed averages gradients over ranks; the step's loss is a sum over them.
    engine.backward(weighted.sum() * engine.world.size, item.micro.last)
    if len(item.micro.positions):
        sums.add(pack.positions, weighted, item.rows)


def _timed(items: Iterator[Fed]) -> Iterator[tuple[Fed, float]]:
    """Each item with the seconds that were spent waiting for it."""
    while True:
        asked = time.perf_counter()
        progress.doing("waiting for data")
        item = next(items, None)
        if item is None:
            return
        yield item, time.perf_counter() - asked
