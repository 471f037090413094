"""What a rank's host does for one pack of a real run, away from the model.

python -m tests.bench.bench_host
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dist_trainer.feed.collate import collate, draws
from dist_trainer.feed.conditioning import Recipe
from dist_trainer.model.loss import loss_weights
from shards.formats.sample import Sample
from shards.geometry import Patch, Scale
from shards.pack import costs, pack
from shards.plan import Batching, Plan

# Latent frames, height, width of clips and an image of 320x320 to 1280x704: 32k tokens together.
GRIDS = (
    (12, 14, 24), (12, 24, 16), (4, 22, 40), (16, 10, 16), (1, 22, 40), (9, 14, 24), (6, 17, 30), (12, 16, 10),
    (3, 22, 22), (16, 14, 10), (12, 20, 20),
)  # fmt: skip
TEXTS = (48, 12, 140, 80, 31, 256, 64, 110, 95)  # tokens of a caption
RANKS = 64

Work = Callable[[], object]


def make_samples(grids: Sequence[tuple[int, ...]], channels: int, text_width: int) -> list[Sample]:
    """One random sample for each of the latent `grids` (F, H, W), captions of mixed lengths; always the same."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).bfloat16()

    return [
        Sample(f"{n}", n, random(channels, *grid), random(TEXTS[n % len(TEXTS)], text_width), (), 24.0)
        for n, grid in enumerate(grids)
    ]


def loading(samples: list[Sample]) -> dict[str, Work]:
    """What the feed's threads do between reading samples and handing out their pack."""
    recipe = Recipe(Scale(8, 32), Patch(), first_frame_p=0.1)
    epochs, positions = [0] * len(samples), range(len(samples))
    drawn = draws(samples, epochs, recipe)
    weights = loss_weights([sample.latents.numel() for sample in samples], "sample").tolist()
    return {
        "draws: sigmas, coins, noise": lambda: draws(samples, epochs, recipe),
        "collate: noising, coordinates, text": lambda: collate(samples, drawn, recipe, positions, weights),
    }


def planning(lengths: Sequence[int], samples: int) -> Work:
    """What the training thread does for a step: look the samples up, lay them out."""
    tokens = np.resize(np.array(lengths), 100_000)
    plan = Plan(np.arange(len(tokens), dtype=np.uint64), tokens, Batching(samples, None), 0)

    def work() -> None:
        chosen = tokens[plan.step(1).rows]
        pack(chosen, costs(chosen, 6e-5), RANKS, 2 * sum(lengths))

    return work


def host_table(repeats: int = 9) -> Table:
    samples = make_samples(GRIDS, 128, 4096)
    lengths = [sample.latents[0].numel() for sample in samples]
    table = Table(
        title=f"Host work for a pack of {sum(lengths):,} tokens, {len(samples)} samples, 128 channels",
        caption=f"CPU ms of one thread, median of {repeats}. Python: the same calls on tiny tensors, all that can hold"
        " up the thread that drives the GPU; draws and collate run beside it. Plan and layout run in it, once a step.",
    )
    for heading in ("work", "ms", "of it Python"):
        table.add_column(heading, justify="left" if heading == "work" else "right")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    tiny = loading(make_samples([(min(frames, 2), 2, 2) for frames, *_ in GRIDS], 4, 8))
    for name, work in loading(samples).items():
        table.add_row(name, f"{_cpu_ms(work, repeats):.1f}", f"{_cpu_ms(tiny[name], repeats):.1f}")
    count = RANKS * len(samples)
    laid_out = f"{_cpu_ms(planning(lengths, count), repeats):.1f}"
    table.add_row(f"plan and layout of a step: {count} samples, {RANKS} ranks", laid_out, laid_out)
    torch.set_num_threads(threads)
    return table


def _cpu_ms(work: Work, repeats: int) -> float:
    work()  # warms up; the plan orders its epoch
    took = []
    for _ in range(repeats):
        began = time.thread_time()
        work()
        took.append(time.thread_time() - began)
    return 1e3 * float(np.median(took))


if __name__ == "__main__":
    Console().print(host_table())
