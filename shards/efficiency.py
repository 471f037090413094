"""What a plan makes of a cluster: how much of the ranks' time trains, known before anything runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from rich.table import Table

from shards.errors import InputError
from shards.pack import Layout, costs, loads, pack
from shards.plan import Batching, Int64s, Mix, Plan

# `random` is worth a remark when it wastes more than this share of the ranks' time.
_WASTE = 0.1
_GAIN = 0.01  # that makes another mix worth a word


@dataclass(frozen=True)
class Efficiency:
    """One number of ranks. Shares are in [0, 1]; means are over the steps looked at.

    useful: cost trained / (ranks x sum over micro-steps of the dearest pack). balance: dearest pack / mean
    pack of a micro-step, mean over micro-steps. idle: share of packs that are empty. padding: share of the
    tokens laid out that are no sample's first copy. dropped: share of the steps' samples that no pack holds.
    other_useful: `useful` under the other mix, None when not asked for or impossible at this batch size.
    """

    mix: Mix
    ranks: int
    steps_per_epoch: float
    steps_measured: int
    samples_per_step: float
    micro_steps: float
    useful: float
    balance: float
    idle: float
    padding: float
    dropped: float
    other_useful: float | None = None


def report(
    tokens: Int64s,
    ids: npt.NDArray[np.uint64],
    batching: Batching,
    ranks: Sequence[int],
    cap: int,
    quadratic: float,
    seed: int = 0,
    max_steps: int = 100,
    compare: bool = True,
) -> list[Efficiency]:
    """Lay out the first epoch's steps for each number of ranks, with what the other mix would give beside it.

    `tokens`: int64[N] per sample; `ids`: uint64[N]; `cap`: tokens per pack; `quadratic`: see
    `shards.pack.costs`. An epoch of more than `max_steps` steps is judged by that many evenly spaced ones
    (`Efficiency.steps_measured`).
    Raises InputError for what `Plan` and `pack` refuse.
    """
    rows = _measure(Plan(ids, tokens, batching, seed), ranks, cap, quadratic, max_steps)
    if not compare:
        return rows
    try:
        other = Plan(ids, tokens, replace(batching, mix=_other(batching.mix)), seed)
    except InputError:
        return rows
    others = _measure(other, ranks, cap, quadratic, max_steps)
    return [replace(row, other_useful=twin.useful) for row, twin in zip(rows, others, strict=True)]


def outlook(
    tokens: Int64s,
    ids: npt.NDArray[np.uint64],
    ranks: Sequence[int] = (8, 64, 512),
    samples_per_rank: Sequence[int] = (1, 8),
    quadratic: float = 6e-5,
    max_steps: int = 20,
) -> list[Efficiency]:
    """What to expect of a dataset before a run is described: steps of so many samples a rank, under both mixes.

    A step has at most all samples. `tokens`: int64[N] per sample; `ids`: uint64[N]. The cap of a pack is training's
    own default, twice the longest sample. The rows are of mix "random", `other_useful` of "similar".
    """
    cap = 2 * int(tokens.max())
    sizes = [
        (count, size)
        for count in ranks
        for size in sorted({min(samples * count, len(tokens)) for samples in samples_per_rank})
    ]
    return [
        row
        for count, size in sizes
        for row in report(tokens, ids, Batching(size, None), [count], cap, quadratic, max_steps=max_steps)
    ]


def render_outlook(rows: Sequence[Efficiency]) -> Table:
    """The rows of `outlook` as a rich table."""
    table = Table(title="Expected share of the GPUs' time that trains")
    for heading in ("GPUs", "samples/step", "mix random %", "mix similar %"):
        table.add_column(heading, justify="right")
    for row in rows:
        similar = "-" if row.other_useful is None else f"{100 * row.other_useful:.1f}"
        table.add_row(f"{row.ranks}", f"{row.samples_per_step:.0f}", f"{100 * row.useful:.1f}", similar)
    return table


def advice(rows: Sequence[Efficiency]) -> str | None:
    """One sentence when `random` wastes over a tenth of the ranks' time, with what `similar` would give."""
    wasteful = [row for row in rows if row.mix == "random" and row.useful < 1 - _WASTE]
    if not wasteful:
        return None
    shareable = [row for row in wasteful if row.samples_per_step >= row.ranks]
    worst = min(shareable or wasteful, key=lambda row: row.useful)
    reason = "cannot be shared out evenly" if shareable else "has fewer samples than ranks"
    opening = (
        f"batching.mix 'random' leaves {1 - worst.useful:.0%} of the time of {worst.ranks} ranks unused: "
        f"a step of {worst.samples_per_step:.0f} samples {reason}"
    )
    if worst.other_useful is None:
        return (
            f"{opening}; larger steps waste less ('similar' needs steps of at least twice the longest sample)"
        )
    if worst.other_useful < worst.useful + _GAIN:
        return f"{opening}; larger steps waste less"
    return f"{opening}; 'similar' would use {worst.other_useful:.1%} of it, and larger steps waste less"


def render(rows: Sequence[Efficiency]) -> Table:
    """The rows as a rich table, one line a number of ranks; the caption says if only some steps were used."""
    table = Table(title="Efficiency of the plan", caption=_caption(rows), padding=(0, 0), pad_edge=False)
    # Two lines a heading: the table fits 80 columns.
    headings = (
        "\nranks",
        "\nmix",
        "steps/\nepoch",
        "samples\n/step",
        "micro-\nsteps",
        "useful\n%",
        "max/\nmean",
        "idle\n%",
        "padding\n%",
        "dropped\n%",
        "other\nmix %",
    )
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        other = "-" if row.other_useful is None else f"{100 * row.other_useful:.1f}"
        table.add_row(
            f"{row.ranks}",
            row.mix,
            f"{row.steps_per_epoch:.1f}",
            f"{row.samples_per_step:.0f}",
            f"{row.micro_steps:.1f}",
            f"{100 * row.useful:.1f}",
            f"{row.balance:.2f}",
            f"{100 * row.idle:.1f}",
            f"{100 * row.padding:.1f}",
            f"{100 * row.dropped:.1f}",
            other,
        )
    return table


def _caption(rows: Sequence[Efficiency]) -> str | None:
    sampled = [row for row in rows if row.steps_measured < row.steps_per_epoch]
    if not sampled:
        return None
    return (
        f"from {sampled[0].steps_measured} evenly spaced steps of an epoch's {sampled[0].steps_per_epoch:.0f}"
    )


def _other(mix: Mix) -> Mix:
    return "similar" if mix == "random" else "random"


def _measure(
    plan: Plan, ranks: Sequence[int], cap: int, quadratic: float, max_steps: int
) -> list[Efficiency]:
    epoch = math.ceil(plan.steps_per_epoch)
    measured = min(epoch, max_steps)
    tallies = [_Tally(count) for count in ranks]
    for n in range(measured):
        rows = plan.step(n * epoch // measured).rows
        tokens = plan.tokens[rows]
        cost = costs(tokens, quadratic)
        for tally in tallies:
            tally.add(tokens, cost, pack(tokens, cost, tally.ranks, cap))
    return [tally.row(plan, measured) for tally in tallies]


class _Tally:
    """Sums over the layouts of one number of ranks."""

    def __init__(self, ranks: int) -> None:
        self.ranks = ranks
        self.samples = self.placed = self.placed_tokens = self.laid_tokens = 0
        self.micro_steps = self.empty = self.cost = self.span = 0
        self.balance = 0.0

    def add(self, tokens: Int64s, cost: Int64s, layout: Layout) -> None:
        held = np.concatenate([positions for micro_step in layout.packs for positions in micro_step])
        distinct = np.unique(held)
        self.samples += len(tokens)
        self.placed += len(distinct)
        self.placed_tokens += int(tokens[distinct].sum())
        self.laid_tokens += int(tokens[held].sum())
        self.cost += int(cost.sum())
        self.micro_steps += len(layout.packs)
        carried = loads(layout, cost)
        self.span += int(carried.max(axis=1).sum())
        self.empty += sum(len(positions) == 0 for micro_step in layout.packs for positions in micro_step)
        self.balance += float((carried.max(axis=1) / carried.mean(axis=1)).sum())

    def row(self, plan: Plan, measured: int) -> Efficiency:
        return Efficiency(
            mix=plan.batching.mix,
            ranks=self.ranks,
            steps_per_epoch=plan.steps_per_epoch,
            steps_measured=measured,
            samples_per_step=self.samples / measured,
            micro_steps=self.micro_steps / measured,
            useful=self.cost / (self.ranks * self.span),
            balance=self.balance / self.micro_steps,
            idle=self.empty / (self.micro_steps * self.ranks),
            padding=1 - self.placed_tokens / self.laid_tokens,
            dropped=1 - self.placed / self.samples,
        )
