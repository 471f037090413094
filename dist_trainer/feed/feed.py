"""What this rank trains, micro-step after micro-step: the plan executed against the dataset.

plan.step(k) -> pack(...) -> this rank's row of the layout -> samples read by offset -> draws -> one Pack.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from dist_trainer.feed import flow
from dist_trainer.feed.collate import Pack, collate, draws, idle
from dist_trainer.feed.conditioning import Recipe, loss_elements
from dist_trainer.feed.substitute import drawn_as, substitutes
from dist_trainer.model.loss import Weighting, loss_weights
from dist_trainer.world import World
from shards.dataset.opened import Dataset
from shards.errors import DamagedSample, ShardError
from shards.formats.sample import Sample
from shards.geometry import Grid
from shards.pack import Layout, costs, loads, pack
from shards.plan import Plan, Step
from shards.reader import Reader
from shards.storage import Root


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

    Of the step's samples: `weights` float64 [B] of their sums of squared errors in its loss, `shares` float64 [B] of
    their means, together 1. `loads` int64 [micro-steps, ranks]: cost of all packs.
    """

    step: Step
    layout: Layout
    index: int
    positions: np.ndarray
    weights: np.ndarray
    shares: np.ndarray
    loads: np.ndarray

    @property
    def last(self) -> bool:
        """Whether it is the last of its step."""
        return self.index == len(self.layout.packs) - 1


@dataclass(frozen=True)
class Fed:
    """A micro-step with its pack loaded.

    `rows` int64 [S]: the manifest rows in the pack, others than the plan's where those are damaged. `damaged`: by
    row, what was found damaged on the way.
    """

    micro: MicroStep
    pack: Pack
    rows: np.ndarray
    damaged: Mapping[int, DamagedSample]


def micro_steps(
    plan: Plan, dataset: Dataset, feeding: Feeding, world: World, start: int, stop: int
) -> Iterator[MicroStep]:
    """All micro-steps of optimizer steps [start, stop) for this rank. Pure: no data is read."""
    cost = costs(plan.tokens, feeding.quadratic)
    for k in range(start, stop):
        step = plan.step(k)
        layout = pack(plan.tokens[step.rows], cost[step.rows], world.size, feeding.cap)
        weights, shares = step_weights(step, dataset, feeding)
        carried = loads(layout, cost[step.rows])
        for index, packs in enumerate(layout.packs):
            yield MicroStep(step, layout, index, packs[world.rank], weights, shares, carried)


def step_weights(step: Step, dataset: Dataset, feeding: Feeding) -> tuple[np.ndarray, np.ndarray]:
    """Loss weights float64 [B] of a step's samples, of their sums and of their means, from the manifest and the
    first-frame coins alone.
    """
    recipe, manifest = feeding.recipe, dataset.manifest
    coins = flow.coins(recipe.seed, step.epochs, manifest.ids[step.rows], recipe.first_frame_p)
    elements = [
        _elements(dataset, recipe, int(row), bool(coin)) for row, coin in zip(step.rows, coins, strict=True)
    ]
    weights = loss_weights(elements, feeding.weighting)
    return weights, weights * np.asarray(elements, dtype=np.float64)


def _elements(dataset: Dataset, recipe: Recipe, row: int, coin: bool) -> int:
    grid = Grid(*(int(n) for n in dataset.manifest.grid[row]))
    return loss_elements(grid, recipe.patch, coin, dataset.info.channels)


def loader(
    reader: Reader, plan: Plan, dataset: Dataset, feeding: Feeding, pin: bool
) -> Callable[[MicroStep], Fed]:
    """A function that loads a micro-step's pack; it runs in background threads.

    A damaged sample's place is taken by the first sound one of its `substitutes`, drawn `drawn_as` both, with the
    damaged one's first-frame coin and its share of the step's loss: among samples of one size no weight changes.
    Raises ShardError when a shard cannot be read, or there is no sound substitute.
    """

    def load(micro: MicroStep) -> Fed:
        if len(micro.positions):
            made = _load(micro, reader, plan, dataset, feeding)
        else:
            made = Fed(micro, idle(feeding.channels, feeding.text_width), micro.positions, {})
        return replace(made, pack=made.pack.pin()) if pin else made

    return load


def _load(micro: MicroStep, reader: Reader, plan: Plan, dataset: Dataset, feeding: Feeding) -> Fed:
    recipe, ids = feeding.recipe, dataset.manifest.ids
    planned, weights = micro.step.rows[micro.positions], micro.weights[micro.positions]
    epochs = [int(epoch) for epoch in micro.step.epochs[micro.positions]]
    rows = planned.copy()
    samples: list[Sample] = []
    damaged: dict[int, DamagedSample] = {}
    for place, found in enumerate(reader.read_each(planned)):
        if isinstance(found, DamagedSample):
            row = int(planned[place])
            damaged[row] = found
            order = substitutes(dataset.manifest, plan.tokens, plan.seed, epochs[place], row)
            rows[place], sample = _first_sound(reader, order, found, damaged, dataset.root)
            samples.append(replace(sample, id=drawn_as(int(ids[row]), sample.id)))
        else:
            samples.append(found)
    drawn = draws(samples, epochs, recipe)
    for place in np.flatnonzero(rows != planned).tolist():
        row, other = int(planned[place]), int(rows[place])
        coin = bool(flow.coins(recipe.seed, epochs[place], ids[row], recipe.first_frame_p))
        drawn[place] = drawn[place]._replace(first_frame=coin)
        weights[place] *= _elements(dataset, recipe, row, coin) / _elements(dataset, recipe, other, coin)
    positions = [int(position) for position in micro.positions]
    pack = collate(samples, drawn, recipe, positions, [float(weight) for weight in weights])
    return Fed(micro, pack, rows, damaged)


def _first_sound(
    reader: Reader, order: np.ndarray, cause: DamagedSample, damaged: dict[int, DamagedSample], root: Root
) -> tuple[int, Sample]:
    """Row and sample of the first of `order` that is not damaged; those before it go to `damaged`."""
    tried: list[str] = []
    for row in order.tolist():
        (found,) = reader.read_each([row])
        if isinstance(found, Sample):
            return row, found
        damaged[row] = found
        tried.append(found.key)
    raise ShardError(
        cause.shard,
        cause.key,
        f"{cause.what} differs ({cause.expected}, {cause.found}), and of the samples to train in its place",
        "a sound one",
        f"damage in all {len(tried)} tried ({', '.join(tried)}); `ltx-shards doctor {root}` says whether the shards "
        "are damaged or the manifest is of other ones"
        if tried
        else f"none: no other sample has as few tokens; put back {cause.shard} from a copy and start again, or run "
        f"`ltx-shards doctor {root} --repair` and train what is left in another output_dir",
    )
