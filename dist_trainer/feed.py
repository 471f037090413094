"""What this rank trains, micro-step after micro-step: the plan executed against the dataset.

plan.step(k) -> pack(...) -> this rank's row of the layout -> samples read by offset -> draws -> one Pack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from dist_trainer import flow
from dist_trainer.collate import Pack, collate, draws, idle
from dist_trainer.conditioning import Recipe, loss_elements
from dist_trainer.loss import Weighting, loss_weights
from dist_trainer.world import World
from shards.dataset import Dataset
from shards.geometry import Grid
from shards.pack import Layout, costs, loads, pack
from shards.plan import Plan, Step
from shards.reader import Reader


@dataclass(frozen=True)
class Feeding:
    """What the feed needs to know besides the dataset and the plan.

    `cap`: most tokens in a pack. `quadratic`: attention's share of a sample's cost. `channels`, `text_width`: of the
    transformer's inputs. `weighting`: of the samples in the loss.
    """

    recipe: Recipe
    cap: int
    quadratic: float
    channels: int
    text_width: int
    weighting: Weighting


@dataclass(frozen=True)
class MicroStep:
    """One micro-step as this rank sees it: `positions` int64 [S] into the step's samples (none: an idle rank).

    `weights` float64 [B]: of the step's samples in its loss. `loads` int64 [micro-steps, ranks]: cost of all packs.
    """

    step: Step
    layout: Layout
    index: int
    positions: np.ndarray
    weights: np.ndarray
    loads: np.ndarray

    @property
    def last(self) -> bool:
        """Whether it is the last of its step."""
        return self.index == len(self.layout.packs) - 1


@dataclass(frozen=True)
class Fed:
    """A micro-step with its pack loaded."""

    micro: MicroStep
    pack: Pack


def micro_steps(
    plan: Plan, dataset: Dataset, feeding: Feeding, world: World, start: int, stop: int
) -> Iterator[MicroStep]:
    """All micro-steps of optimizer steps [start, stop) for this rank. Pure: no data is read."""
    cost = costs(plan.tokens, feeding.quadratic)
    for k in range(start, stop):
        step = plan.step(k)
        layout = pack(plan.tokens[step.rows], cost[step.rows], world.size, feeding.cap)
        weights = step_weights(step, dataset, feeding)
        carried = loads(layout, cost[step.rows])
        for index, packs in enumerate(layout.packs):
            yield MicroStep(step, layout, index, packs[world.rank], weights, carried)


def step_weights(step: Step, dataset: Dataset, feeding: Feeding) -> np.ndarray:
    """Loss weights float64 [B] of a step's samples, from the manifest and the first-frame coins alone."""
    recipe, manifest = feeding.recipe, dataset.manifest
    coins = flow.coins(recipe.seed, step.epochs, manifest.ids[step.rows], recipe.first_frame_p)
    elements = [
        loss_elements(
            Grid(*(int(n) for n in manifest.grid[row])), recipe.patch, bool(coin), dataset.info.channels
        )
        for row, coin in zip(step.rows, coins, strict=True)
    ]
    return loss_weights(elements, feeding.weighting)


def loader(reader: Reader, feeding: Feeding, pin: bool) -> Callable[[MicroStep], Fed]:
    """A function that loads a micro-step's pack; it runs in background threads."""

    def load(micro: MicroStep) -> Fed:
        if len(micro.positions) == 0:
            made = idle(feeding.channels, feeding.text_width)
        else:
            samples = reader.read([int(row) for row in micro.step.rows[micro.positions]])
            drawn = draws(samples, [int(e) for e in micro.step.epochs[micro.positions]], feeding.recipe)
            positions = [int(p) for p in micro.positions]
            made = collate(
                samples, drawn, feeding.recipe, positions, [float(w) for w in micro.weights[positions]]
            )
        return Fed(micro, made.pin() if pin else made)

    return load
