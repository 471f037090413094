"""Laying a step's samples out as micro-steps x ranks of packs.

ZeRO-3 runs in lock-step, so a micro-step lasts as long as its dearest pack, and the step as long as the sum
of those. No layout beats max(dearest sample, total / ranks). The layouts tried here are graded: samples go
from dear to cheap; a micro-step takes them, each into the pack with most room left, up to a level in cost
that its dearest sample sets (or the share of the rest that is due), and what finds no room waits for the
next. The last micro-step takes what is left, each sample where the load is least. They differ in the number
of micro-steps.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from shards.errors import InputError

Int64s = npt.NDArray[np.int64]

# Fewer micro-steps win unless more are better by half a percent: each gathers all weights once more.
_NEAR_TIE = (1005, 1000)
_ATTEMPTS = 3
_FRACTION_BITS = 10
_UNLIMITED = 1 << 62


@dataclass(frozen=True)
class Layout:
    """`packs[micro-step][rank]`: int64 positions into the step, ascending, empty for an idle rank.

    `useful`: total cost / (ranks x sum over micro-steps of the dearest pack's cost), in (0, 1].
    `idle`: share of the packs that are empty, in [0, 1).
    """

    packs: tuple[tuple[Int64s, ...], ...]
    useful: float
    idle: float


def costs(tokens: npt.NDArray[np.integer[Any]], quadratic: float) -> Int64s:
    """Cost of samples of L tokens, `L + quadratic * L**2`: int64[B], in 1/1024 of one token's linear cost.

    `tokens`: int[B]; `quadratic`: weight of attention, per token (6e-5 for the 2B LTX model). Integer
    arithmetic, so every host agrees. Raises ValueError when `quadratic` is negative or the result would leave
    64 bits.
    """
    length = np.asarray(tokens, dtype=np.int64)
    if quadratic < 0:
        raise ValueError(f"quadratic must not be negative, got {quadratic}")
    factor = round(quadratic * 2**30)
    longest = int(length.max(initial=0))
    if longest * longest * factor >= _UNLIMITED:
        raise ValueError(f"quadratic {quadratic} with a sample of {longest} tokens is too large for 64 bits")
    return (length << _FRACTION_BITS) + ((length * length * factor) >> (30 - _FRACTION_BITS))


def loads(layout: Layout, cost: Int64s) -> Int64s:
    """Cost of every pack: int64 [micro-steps, ranks]. `cost`: int64 [B] of the step's samples."""
    return np.array(
        [[cost[positions].sum() for positions in packs] for packs in layout.packs], dtype=np.int64
    )


def pack(tokens: Int64s, cost: Int64s, ranks: int, cap: int) -> Layout:
    """Lay every sample of a step out once: at most `cap` tokens a pack, near-equal cost in a micro-step.

    `tokens`, `cost`: int64[B], B >= 1, positive (`costs` makes the second of the first). Deterministic, ties
    go by position. The number of micro-steps is chosen here, for the highest useful share, fewer on near
    ties. Raises InputError when a sample alone exceeds the cap, ValueError for an empty step or no ranks.
    """
    if len(tokens) == 0 or ranks < 1:
        raise ValueError(f"nothing to lay out: {len(tokens)} samples on {ranks} ranks")
    if int(tokens.max()) > cap:
        worst = int(np.argmax(tokens))
        raise InputError(
            f"sample {worst} of the step has {int(tokens[worst])} tokens, more than the cap of {cap}"
        )
    items = _sorted(tokens, cost)
    total = int(cost.sum())
    bound = max(items.cost[0], -(-total // ranks))
    fewest = -(-int(tokens.sum()) // (ranks * cap))
    tries: list[_Draft] = []
    for micro_steps in range(fewest, fewest + _ATTEMPTS):
        tries.append(_graded(items, micro_steps, ranks, cap))
        if _near(tries[-1].span, bound) and tries[-1].micro_steps == micro_steps:
            break
    least = min(draft.span for draft in tries)
    # Later tries first: they meant to use that many micro-steps, an earlier one only ran over into the last.
    near = [draft for draft in reversed(tries) if _near(draft.span, least)]
    chosen = min(near, key=lambda draft: draft.micro_steps)
    return _layout(chosen, items.positions, ranks, total)


def check_cap(
    keys: Sequence[str], tokens: Int64s, cap: int, setting: str = "batching.max_tokens_per_pack"
) -> None:
    """Raise InputError when a sample alone exceeds the cap, naming the five longest and the ways out.

    `keys`: N sample keys; `tokens`: int64[N]; `cap`: tokens per pack; `setting`: what the user set it by.
    """
    over = np.flatnonzero(np.asarray(tokens) > cap)
    if len(over) == 0:
        return
    longest = over[np.argsort(-np.asarray(tokens)[over], kind="stable")][:5]
    names = ", ".join(f"{keys[row]} ({int(tokens[row])} tokens)" for row in longest)
    more = f" and {len(over) - len(longest)} more" if len(over) > len(longest) else ""
    raise InputError(
        f"{len(over)} of {len(tokens)} samples have more tokens than a pack may hold (the cap, {cap}): "
        f"{names}{more}. Raise {setting} to at least {int(tokens[longest[0]])}, or encode "
        "the data into smaller buckets; splitting one sample over several GPUs (sequence parallelism) is not "
        "available yet"
    )


class _Items(NamedTuple):
    """A step's samples from dear to cheap, as lists because the loops below read single values."""

    positions: Int64s
    cost: list[int]
    tokens: list[int]
    lengths: list[int]  # tokens, ascending
    fitting: list[int]  # [i]: any sample of at most this cost has fewer than lengths[i] tokens; [B]: no limit


class _Draft(NamedTuple):
    slots: list[int]  # per item: micro-step * ranks + rank
    micro_steps: int
    span: int  # sum over micro-steps of the dearest pack's cost


def _sorted(tokens: Int64s, cost: Int64s) -> _Items:
    order = np.argsort(-cost, kind="stable")
    by_length = np.argsort(tokens, kind="stable")
    cheapest_from = np.minimum.accumulate(cost[by_length][::-1])[::-1]
    return _Items(
        positions=order,
        cost=cost[order].tolist(),
        tokens=tokens[order].tolist(),
        lengths=tokens[by_length].tolist(),
        fitting=[*(cheapest_from - 1).tolist(), _UNLIMITED],
    )


def _near(span: int, least: int) -> bool:
    above, one = _NEAR_TIE
    return span * one <= least * above


def _graded(items: _Items, wanted: int, ranks: int, cap: int) -> _Draft:
    """Fill `wanted` micro-steps, or more when the cap leaves samples over: none is ever dropped."""
    slots = [0] * len(items.cost)
    waiting = list(range(len(items.cost)))
    done = span = 0
    while waiting:
        left = max(1, wanted - done)
        due = -(-sum(items.cost[i] for i in waiting) // (ranks * left))
        level = max(items.cost[waiting[0]], due)
        load, free, waiting = _fill(items, waiting, slots, done * ranks, level, ranks, cap)
        if left == 1 and waiting:
            waiting = _spread(items, waiting, slots, done * ranks, load, free)
        span += max(load)
        done += 1
    return _Draft(slots, done, span)


def _fill(
    items: _Items, waiting: list[int], slots: list[int], first_slot: int, level: int, ranks: int, cap: int
) -> tuple[list[int], list[int], list[int]]:
    """One micro-step: each waiting item, dear to cheap, into the pack with most room; no pack passes `level`.

    Writes `slots` of the items placed; returns each rank's cost, each rank's free tokens, and the items not
    placed. Room is kept as one number, the largest cost that surely fits both the level and the cap, so one
    look at the roomiest pack tells whether an item fits at all; the first that does is found by bisection.
    """
    cost, tokens, lengths, fitting = items.cost, items.tokens, items.lengths, items.fitting
    load, free = [0] * ranks, [cap] * ranks
    heap = [(-level, rank) for rank in range(ranks)]
    ascending = [-cost[i] for i in waiting]
    rest: list[int] = []
    n = 0
    while n < len(waiting):
        item = waiting[n]
        roomiest, rank = heap[0]
        if cost[item] > -roomiest:
            fits = bisect_left(ascending, roomiest, n)
            rest += waiting[n:fits]
            n = fits
            continue
        slots[item] = first_slot + rank
        load[rank] += cost[item]
        free[rank] -= tokens[item]
        gap = min(level - load[rank], fitting[bisect_right(lengths, free[rank])])
        heapreplace(heap, (-gap, rank))
        n += 1
    return load, free, rest


def _spread(
    items: _Items, waiting: list[int], slots: list[int], first_slot: int, load: list[int], free: list[int]
) -> list[int]:
    """Put waiting items where the load is least, whatever the level; return those no pack has tokens for."""
    loads, tokens_left = np.array(load), np.array(free)
    rest: list[int] = []
    for item in waiting:
        open_loads = np.where(tokens_left >= items.tokens[item], loads, _UNLIMITED)
        rank = int(open_loads.argmin())
        if open_loads[rank] == _UNLIMITED:
            rest.append(item)
            continue
        slots[item] = first_slot + rank
        loads[rank] += items.cost[item]
        tokens_left[rank] -= items.tokens[item]
    load[:] = loads.tolist()
    return rest


def _layout(draft: _Draft, positions: Int64s, ranks: int, total: int) -> Layout:
    packs = draft.micro_steps * ranks
    slot_of = np.empty(len(positions), dtype=np.int64)
    slot_of[positions] = draft.slots
    by_slot = np.argsort(slot_of, kind="stable")
    sizes = np.bincount(slot_of, minlength=packs)
    ends = np.cumsum(sizes).tolist()
    cut = [by_slot[begin:end] for begin, end in zip([0, *ends[:-1]], ends, strict=True)]
    return Layout(
        packs=tuple(tuple(cut[first : first + ranks]) for first in range(0, packs, ranks)),
        useful=total / (ranks * draft.span),
        idle=int((sizes == 0).sum()) / packs,
    )
