"""What a dataset holds, from its manifest alone: totals, sizes and a histogram of sample lengths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from rich.console import Group
from rich.table import Column, Table

from shards.counted import counted
from shards.dataset.opened import Dataset
from shards.geometry import UNIT_PATCH, Bucket, Patch

_BAR = 40
_SIZES = 12


@dataclass(frozen=True)
class Spread:
    """Minimum, median, mean, 95th percentile and maximum of a column."""

    minimum: float
    median: float
    mean: float
    p95: float
    maximum: float

    @classmethod
    def of(cls, values: np.ndarray) -> Spread:
        """The spread of numbers [N], N > 0."""
        low, median, p95, high = np.percentile(values, [0, 50, 95, 100])
        return cls(float(low), float(median), float(values.mean()), float(p95), float(high))


@dataclass(frozen=True)
class Stats:
    """``tokens`` count target and reference; ``seconds`` is the playing time, images left out.

    ``sizes``: samples per clip size in pixels, most frequent first. ``histogram``: (lowest, highest, samples)
    for lengths between powers of two, without gaps.
    """

    samples: int
    shards: int
    nbytes: int
    images: int
    references: int
    seconds: float
    total_tokens: int
    tokens: Spread
    text_tokens: Spread
    fps: Spread
    sizes: tuple[tuple[Bucket, int], ...]
    histogram: tuple[tuple[int, int, int], ...]


def summarize(dataset: Dataset, patch: Patch = UNIT_PATCH) -> Stats:
    """Figures of a dataset. Raises InputError where the transformer's ``patch`` does not divide a sample."""
    manifest, scale = dataset.manifest, dataset.info.scale
    tokens = manifest.tokens(patch)
    frames = (manifest.grid[:, 0].astype(np.int64) - 1) * scale.temporal + 1
    grids, counts = np.unique(manifest.grid, axis=0, return_counts=True)
    sizes = []
    for place in np.argsort(-counts, kind="stable"):
        count, height, width = scale.pixels(tuple(grids[place].tolist()))
        sizes.append((Bucket(width, height, count), int(counts[place])))
    return Stats(
        samples=len(manifest),
        shards=len(manifest.shards),
        nbytes=int(manifest.nbytes.sum()),
        images=int((frames == 1).sum()),
        references=int(manifest.references.any(axis=(1, 2)).sum()),
        seconds=float((frames / manifest.fps)[frames > 1].sum()),
        total_tokens=int(tokens.sum()),
        tokens=Spread.of(tokens),
        text_tokens=Spread.of(manifest.text_tokens),
        fps=Spread.of(manifest.fps),
        sizes=tuple(sizes),
        histogram=_histogram(tokens),
    )


def render(stats: Stats) -> Group:
    """The figures as rich tables for a terminal."""
    return Group(_totals(stats), _spreads(stats), _sizes(stats), _lengths(stats))


def _histogram(tokens: np.ndarray) -> tuple[tuple[int, int, int], ...]:
    # frexp is exact where log2 may round a power of two into the wrong bin.
    power = np.frexp(tokens.astype(np.float64))[1] - 1
    first = int(power.min())
    counts = np.bincount(power - first)
    return tuple((1 << first + n, (1 << first + n + 1) - 1, int(count)) for n, count in enumerate(counts))


def _totals(stats: Stats) -> Table:
    table = Table(show_header=False, title="Dataset")
    hours, rest = divmod(round(stats.seconds), 3600)
    for name, value in (
        (
            "samples",
            f"{stats.samples:,} ({counted(stats.images, 'image')}, {stats.references:,} with a reference)",
        ),
        ("shards", f"{stats.shards:,}"),
        ("bytes", f"{stats.nbytes:,}"),
        ("tokens", f"{stats.total_tokens:,}"),
        ("video", f"{hours}:{rest // 60:02d}:{rest % 60:02d}"),
    ):
        table.add_row(name, value)
    return table


def _spreads(stats: Stats) -> Table:
    table = Table("per sample", *(_right(name) for name in ("min", "median", "mean", "p95", "max")))
    for name, spread in (("tokens", stats.tokens), ("text tokens", stats.text_tokens), ("fps", stats.fps)):
        values = (spread.minimum, spread.median, spread.mean, spread.p95, spread.maximum)
        table.add_row(name, *(f"{value:,.5g}" if value < 1000 else f"{value:,.0f}" for value in values))
    return table


def _sizes(stats: Stats) -> Table:
    table = Table("width x height x frames", _right("samples"), _right("share"))
    for size, count in stats.sizes[:_SIZES]:
        table.add_row(str(size), f"{count:,}", f"{count / stats.samples:.1%}")
    others = stats.sizes[_SIZES:]
    if others:
        rest = sum(count for _, count in others)
        table.add_row(counted(len(others), "other size"), f"{rest:,}", f"{rest / stats.samples:.1%}")
    return table


def _lengths(stats: Stats) -> Table:
    table = Table(_right("tokens of a sample"), _right("samples"), "")
    most = max(count for _, _, count in stats.histogram)
    for low, high, count in stats.histogram:
        table.add_row(f"{low:,} to {high:,}", f"{count:,}", "#" * -(-count * _BAR // most))
    return table


def _right(name: str) -> Column:
    return Column(name, justify="right")
