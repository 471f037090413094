"""How much of a cluster's time the plan trains, beside what common batchings reach, and how long it takes.

    python -m tests.bench.bench_plan --samples 1000000 --ranks 8 64 512

All shares are of one synthetic data set in one run: 11 resolutions from 512x320 to 1280x704, a fifth images,
the rest of log-normal length around 89 frames. Cost is L + 6e-5 L^2, that of the 2B model.
"""

from __future__ import annotations

import argparse
import time
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from shards.efficiency import Efficiency, report
from shards.hashing import mix, unit
from shards.pack import costs, pack
from shards.plan import Batching, Plan

QUADRATIC = 6e-5
# Tokens of one padded micro-batch in the bucket baselines.
BUDGET = 32768
# In latent cells of 32 pixels.
RESOLUTIONS = (
    (16, 10), (10, 16), (20, 12), (24, 14), (14, 24), (22, 15),
    (30, 17), (17, 30), (32, 18), (40, 22), (22, 40),
)  # fmt: skip

Int64s = npt.NDArray[np.int64]


class Data(NamedTuple):
    ids: npt.NDArray[np.uint64]  # [N]
    tokens: Int64s  # [N]
    shape: Int64s  # [N] number of the exact shape


class Outcome(NamedTuple):
    method: str
    ranks: int
    passes: float  # micro-steps per epoch
    steps: float  # optimizer steps per epoch
    useful: float
    padding: float
    dropped: float


def realistic(samples: int, seed: int = 0) -> Data:
    """Tokens 160 to 29040, median 3.5k, mean 4.8k; the same for every host."""
    ids = mix(seed, np.arange(samples, dtype=np.uint64))
    first, second, third, fourth = (unit(mix(n, ids)) for n in range(4))
    normal = np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)
    frames = np.clip(89 * np.exp(0.5 * normal), 25, 257)
    latents = np.where(third < 0.2, 1, np.rint((frames - 1) / 8).astype(np.int64) + 1)
    sizes = np.array(RESOLUTIONS)
    chosen = (fourth * len(sizes)).astype(np.int64)
    return Data(ids, latents * sizes[chosen].prod(axis=1), chosen * 64 + latents)


def random_single(data: Data, ranks: int) -> Outcome:
    order = _shuffled(data)
    kept = order[: len(order) // ranks * ranks]
    cost = costs(data.tokens[kept], QUADRATIC)
    return _outcome("random, batch 1", data, ranks, kept, cost.reshape(-1, ranks), 0.0)


def random_padded(data: Data, ranks: int, batch: int = 4) -> Outcome:
    order = _shuffled(data)
    kept = order[: len(order) // (ranks * batch) * ranks * batch]
    longest = data.tokens[kept].reshape(-1, batch).max(axis=1)
    padding = 1 - data.tokens[kept].sum() / (batch * longest.sum())
    cost = batch * costs(longest, QUADRATIC).reshape(-1, ranks)
    return _outcome(f"random, batch {batch}, padded", data, ranks, kept, cost, padding)


def bucket_per_rank(data: Data, ranks: int) -> Outcome:
    """Each rank batches its own share of the data by exact shape; rests and surplus batches are dropped."""
    order = _shuffled(data)
    owner = np.arange(len(order)) % ranks
    grouped, batch_of, full = _batches(data, order, owner, share=1)
    first = np.unique(batch_of[full], return_index=True)[1]
    lead, batch_owner = order[grouped][full][first], owner[grouped][full][first]
    size = BUDGET // data.tokens[lead]
    steps = int(np.bincount(batch_owner, minlength=ranks).min())
    by_owner = np.lexsort((mix(5, data.ids[lead]), batch_owner))
    turn = np.arange(len(by_owner)) - np.searchsorted(batch_owner[by_owner], batch_owner[by_owner])
    used = by_owner[turn < steps]
    cost = (size * costs(data.tokens[lead], QUADRATIC))[used].reshape(ranks, steps).T
    return _whole_batches("bucket per rank, token budget", data, ranks, int(size[used].sum()), cost)


def bucket_all_ranks(data: Data, ranks: int) -> Outcome:
    """All ranks take the same exact shape in a step; what does not fill every rank's batch is dropped."""
    order = _shuffled(data)
    grouped, batch_of, full = _batches(data, order, np.zeros_like(order), share=ranks)
    lead = order[grouped][full][np.unique(batch_of[full], return_index=True)[1]]
    size = BUDGET // data.tokens[lead]
    cost = np.repeat((size * costs(data.tokens[lead], QUADRATIC))[:, None], ranks, axis=1)
    return _whole_batches("same bucket on all ranks", data, ranks, int(size.sum()) * ranks, cost)


def ours(data: Data, batching: Batching, ranks: int, cap: int, max_steps: int, note: str) -> Outcome:
    (row,) = report(
        data.tokens, data.ids, batching, [ranks], cap, QUADRATIC, max_steps=max_steps, compare=False
    )
    return _from_row(row, note)


def step_for(data: Data, ranks: int, cap: int, fill: float) -> int:
    """Samples in a step that hold `fill` times the tokens of one micro-step of full packs."""
    return max(1, round(fill * ranks * cap / float(data.tokens.mean())))


def _from_row(row: Efficiency, note: str) -> Outcome:
    return Outcome(
        f"{row.mix}: {note}",
        row.ranks,
        row.micro_steps * row.steps_per_epoch,
        row.steps_per_epoch,
        row.useful,
        row.padding,
        row.dropped,
    )


def _shuffled(data: Data) -> Int64s:
    return np.argsort(mix(9, data.ids), kind="stable")


def _batches(
    data: Data, order: Int64s, owner: Int64s, share: int
) -> tuple[Int64s, Int64s, npt.NDArray[np.bool_]]:
    """Positions of `order` sorted by (owner, shape), the batch each falls into, whether that is complete."""
    group = owner * 4096 + data.shape[order]
    grouped = np.argsort(group, kind="stable")
    group = group[grouped]
    size = BUDGET // data.tokens[order[grouped]] * share
    within = np.arange(len(order)) - np.searchsorted(group, group)
    starts = np.flatnonzero(within % size == 0)
    batch_of = np.cumsum(within % size == 0) - 1
    full = (np.diff(np.append(starts, len(order))) == size[starts])[batch_of]
    return grouped, batch_of, full


def _outcome(method: str, data: Data, ranks: int, kept: Int64s, cost: Int64s, padding: float) -> Outcome:
    useful = float(costs(data.tokens[kept], QUADRATIC).sum()) / float(ranks * cost.max(axis=1).sum())
    return Outcome(method, ranks, len(cost), len(cost), useful, padding, 1 - len(kept) / len(data.ids))


def _whole_batches(method: str, data: Data, ranks: int, kept: int, cost: Int64s) -> Outcome:
    useful = float(cost.sum()) / float(ranks * cost.max(axis=1).sum()) if len(cost) else 0.0
    return Outcome(method, ranks, len(cost), len(cost), useful, 0.0, 1 - kept / len(data.ids))


def _efficiency_table(data: Data, all_ranks: list[int], max_steps: int) -> Table:
    cap = 2 * int(data.tokens.max())
    table = Table(
        title=f"Share of the ranks' time that trains; {len(data.ids):,} samples, cap {cap:,} tokens",
        caption=f"our rows from {max_steps} evenly spaced steps, the others from the whole epoch",
    )
    headings = ("ranks", "method", "steps/epoch", "micro-steps/epoch", "useful %", "padding %", "dropped %")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for ranks in all_ranks:
        rows = [f(data, ranks) for f in (random_single, random_padded, bucket_per_rank, bucket_all_ranks)]
        for fill in (0.25, 0.5, 1.0, 1.5, 2.0, 3.0):
            size = step_for(data, ranks, cap, fill)
            note = f"{size} samples a step, {fill:g} caps a rank"
            rows.append(ours(data, Batching(size, None), ranks, cap, max_steps, note))
        for mix_name in ("random", "similar"):
            batching = Batching(ranks, None, mix_name)
            rows.append(ours(data, batching, ranks, cap, max_steps, "one sample a rank"))
        for row in rows:
            shares = (f"{100 * share:.1f}" for share in (row.useful, row.padding, row.dropped))
            table.add_row(f"{row.ranks}", row.method, f"{row.steps:.0f}", f"{row.passes:.0f}", *shares)
        table.add_section()
    return table


def _planning_table(data: Data) -> Table:
    table = Table(
        title=f"CPU seconds to plan an epoch of {len(data.ids):,} samples",
        caption="similar: all steps but those of the last window, which waits for the next epoch's order",
    )
    headings = ("batching", "mix", "check input", "order", "all steps of the epoch", "steps", "fingerprint")
    for heading in headings:
        table.add_column(heading, justify="right")
    for mix_name in ("random", "similar"):
        for samples, tokens in ((512, None), (None, 4_000_000)):
            start = time.process_time()
            plan = Plan(data.ids, data.tokens, Batching(samples, tokens, mix_name), 0)
            checked = time.process_time()
            plan.step(0)
            ordered = time.process_time()
            beyond = plan.batching.window / len(data.ids) if mix_name == "similar" else 0
            count = int(plan.steps_per_epoch * max(0, 1 - beyond))
            for k in range(count - 1):
                plan.step(k)
            walked = time.process_time()
            _ = plan.fingerprint
            ended = time.process_time()
            times = (checked - start, ordered - checked, walked - ordered)
            cells = [f"{seconds:.2f}" for seconds in times] + [f"{count}", f"{ended - walked:.2f}"]
            table.add_row("512 samples" if samples else "4M tokens", mix_name, *cells)
    return table


def _packing_table(data: Data, all_ranks: list[int]) -> Table:
    table = Table(title="Milliseconds to lay out one step (median of 9)")
    for heading in ("ranks", "samples a step", "cap", "micro-steps", "ms"):
        table.add_column(heading, justify="right")
    longest = int(data.tokens.max())
    for ranks in all_ranks:
        for samples in (ranks, 8 * ranks, 16 * ranks):
            for cap in (longest * 9 // 8, 2 * longest):
                plan = Plan(data.ids, data.tokens, Batching(samples, None), 0)
                took, count = [], 0
                for k in range(9):
                    tokens = data.tokens[plan.step(k).rows]
                    start = time.perf_counter()
                    layout = pack(tokens, costs(tokens, QUADRATIC), ranks, cap)
                    took.append(time.perf_counter() - start)
                    count += len(layout.packs)
                cells = (ranks, samples, cap, f"{count / 9:.1f}", f"{1e3 * float(np.median(took)):.2f}")
                table.add_row(*(str(cell) for cell in cells))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--max-steps", type=int, default=50)
    parser.add_argument("--skip-efficiency", action="store_true", help="print the timings only")
    given = parser.parse_args()
    console = Console()
    data = realistic(given.samples)
    at = ", ".join(f"{name} {int(np.percentile(data.tokens, p))}" for name, p in (("p50", 50), ("p95", 95)))
    console.print(
        f"tokens: min {data.tokens.min()}, {at}, mean {data.tokens.mean():.0f}, max {data.tokens.max()}"
    )
    console.print(_planning_table(data))
    console.print(_packing_table(data, given.ranks))
    if not given.skip_efficiency:
        console.print(_efficiency_table(data, given.ranks, given.max_steps))


if __name__ == "__main__":
    main()
