"""The loss on samples that are never trained, on noise that never changes: what a run has learned, in one curve.

Every sample is noised to the middle of each quarter of [0, 1], with noise keyed by (seed, id, quarter), and predicted.
For an IC-LoRA the same is done with the references of other samples and without any: a model that uses its reference
is better with the true one. The work is laid over the ranks as a training step's is.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace

import numpy as np
import torch
import torch.distributed as torch_dist

from dist_trainer.feed import flow
from dist_trainer.feed.collate import Pack, collate, idle
from dist_trainer.feed.conditioning import loss_elements
from dist_trainer.feed.feed import Feeding
from dist_trainer.model.engine import Engine
from dist_trainer.model.loss import sample_sums
from dist_trainer.validation.rounds import ABSENT, SHUFFLED, SIGMAS, TRUE, Round, rounds
from dist_trainer.watch import progress
from dist_trainer.world import World
from shards.dataset.opened import Dataset
from shards.errors import DamagedSample
from shards.formats.sample import Sample
from shards.geometry import Grid
from shards.hashing import mix
from shards.reader import Reader
from shards.stream import stream

_NOISE = 203
_ASK_EVERY = 8  # micro-steps between two looks at what is asked of the run


class Heldout:
    """Measures the loss of a model on a held-out dataset; the same numbers on any number of ranks."""

    def __init__(self, dataset: Dataset, reader: Reader, feeding: Feeding, world: World) -> None:
        """`dataset`: the samples to measure. `reader`: of it. `feeding`: as the run's own."""
        self._dataset, self._reader, self._feeding, self._world = dataset, reader, feeding, world
        self._told: set[str] = set()
        recipe = feeding.recipe
        self._rounds = rounds(
            dataset.manifest, recipe.mode, recipe.patch, feeding.quadratic, feeding.cap, world.size
        )

    def figures(
        self, engine: Engine, dtype: torch.dtype, prefix: str, go_on: Callable[[], bool]
    ) -> dict[str, float] | None:
        """The mean losses under names that begin with `prefix`; None where `go_on` said no on the way.

        All ranks call it together, and `go_on` too, which answers alike on all of them.
        """
        found: dict[str, np.ma.MaskedArray] = {}
        for one in self._rounds:
            losses = self._losses(one, engine, dtype, go_on)
            if losses is None:
                return None
            whole = np.full((len(self._dataset.manifest), len(SIGMAS)), np.nan)
            # A sample that could not be read has no losses; one that is not finite spoils the mean, as it should.
            seen = np.full(whole.shape, False)
            whole[one.rows], seen[one.rows] = losses[0], losses[1] > 0
            found[one.kind] = np.ma.masked_array(whole, ~seen)
        return _named(found, prefix)

    def _losses(
        self, one: Round, engine: Engine, dtype: torch.dtype, go_on: Callable[[], bool]
    ) -> np.ndarray | None:
        """Loss and times seen of every item, over all ranks: float64 [2, n, 4]; None where it was ended."""
        device = self._world.device
        sums = torch.zeros(2, len(one.rows) * len(SIGMAS), dtype=torch.float64, device=device)
        with engine.evaluating(), self._packs(one) as packs:
            for number, made in enumerate(packs):
                if number % _ASK_EVERY == 0 and not go_on():
                    return None
                moved = made.to(device, dtype)
                losses = sample_sums(engine.forward(*moved.inputs()), moved).double() * moved.weights
                if made.keys != ("",):
                    sums[0].index_add_(0, moved.positions, losses)
                    sums[1].index_add_(0, moved.positions, torch.ones_like(losses))
                progress.moved()
        torch_dist.all_reduce(sums)
        return sums.cpu().numpy().reshape(2, len(one.rows), len(SIGMAS))

    def _packs(self, one: Round) -> AbstractContextManager[Iterator[Pack]]:
        own = (packs[self._world.rank] for packs in one.layout.packs)
        return stream(own, lambda items: self._pack(one, items), depth=2, name="heldout")

    def _pack(self, one: Round, items: np.ndarray) -> Pack:
        samples, places = [], []
        for item, sample in zip(items.tolist(), self._read(one, items // len(SIGMAS)), strict=True):
            if sample is not None:
                samples.append(sample)
                places.append(item)
        if not samples:
            return idle(self._feeding.channels, self._feeding.text_width)
        recipe = self._feeding.recipe
        if one.kind == ABSENT:
            recipe = replace(recipe, mode="none")
        drawn = [
            flow.Draw(
                SIGMAS[bin], flow.noise(_seed(recipe.seed), bin, sample.id, sample.latents.shape), False
            )
            for sample, bin in zip(samples, (place % len(SIGMAS) for place in places), strict=True)
        ]
        weights = [
            1.0 / loss_elements(Grid(*sample.latents.shape[1:]), recipe.patch, False, len(sample.latents))
            for sample in samples
        ]
        return collate(samples, drawn, recipe, places, weights)

    def _read(self, one: Round, places: np.ndarray) -> Iterator[Sample | None]:
        """The samples of a round at `places` int64 [S] of its rows, with the references they get; None: damaged."""
        rows, lenders = one.rows[places], one.lenders[places]
        own = self._reader.read_each(rows)
        lent = self._reader.read_each(lenders) if one.kind == SHUFFLED else own
        for sample, lender in zip(own, lent, strict=True):
            if isinstance(sample, Sample) and isinstance(lender, Sample):
                yield replace(sample, references=lender.references)
                continue
            for damage in (sample, lender):
                if isinstance(damage, DamagedSample) and damage.key not in self._told:
                    self._told.add(damage.key)
                    print(
                        f"damaged, rank {self._world.rank}, not measured: {damage}",
                        file=sys.stderr,
                        flush=True,
                    )
            yield None


def _seed(seed: int) -> int:
    """Apart from the noise that is drawn in training."""
    return int(mix(_NOISE, seed))


def _named(losses: dict[str, np.ma.MaskedArray], prefix: str) -> dict[str, float]:
    """Means by name of losses [N, 4], masked where a sample was not seen, by kind of reference."""
    true = losses[TRUE]
    found: dict[str, np.ma.MaskedArray] = {f"{prefix}/loss": true} | {
        f"{prefix}/loss_sigma_{sigma}": true[:, place] for place, sigma in enumerate(SIGMAS)
    }
    if len(losses) > 1:
        # One set of samples for all kinds of reference, or their means would differ for other reasons.
        out = np.logical_or.reduce([np.ma.getmaskarray(kind) for kind in losses.values()])
        found |= {
            f"{prefix}/reference_{kind}": np.ma.masked_array(all.data, out) for kind, all in losses.items()
        }
    return {name: float(values.mean()) for name, values in found.items() if values.count()}
