"""A picture of how long a dataset's samples are, and which sizes make them so."""

from __future__ import annotations

import io

import numpy as np

from shards.counted import counted
from shards.dataset.manifest import Manifest
from shards.geometry import Bucket, Scale

_BINS = 48
_SIZES = 16
_BAR, _MARK, _TEXT = "#4477aa", "#cc6677", "#333333"


def picture(manifest: Manifest, scale: Scale, title: str) -> bytes:
    """PNG: above, samples by sequence length (target and reference tokens); below, the sizes, most frequent first.

    Of each size, in pixels and frames, its latent grid F x H x W and its length are named. ``manifest`` has at
    least one sample. The same manifest gives the same picture.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator

    thousands = FuncFormatter(lambda value, _: f"{value:,.0f}")
    tokens = manifest.tokens()
    grids, counts = np.unique(manifest.grid, axis=0, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:_SIZES]
    figure = Figure(figsize=(10, 4.5 + 0.3 * len(frequent)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    lengths, sizes = figure.subplots(2, 1, height_ratios=[10, 2 + len(frequent)])
    edges = _edges(tokens)
    lengths.hist(tokens, bins=edges, color=_BAR)
    if _is_wide(tokens):
        lengths.set_xscale("log")
        lengths.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        lengths.xaxis.set_minor_locator(NullLocator())
    else:
        lengths.xaxis.set_major_locator(MaxNLocator(integer=True))
    for grid in grids[frequent]:
        lengths.axvline(int(np.prod(grid)), color=_MARK, linewidth=0.8, alpha=0.7)
    lengths.set(
        xlabel="tokens of a sample (lines: the sizes below, without references)",
        ylabel="samples",
        title=f"{title}: {counted(len(tokens), 'sample')} of {_range(tokens)} tokens",
    )
    places = np.arange(len(frequent))
    bars = sizes.barh(places, counts[frequent], color=_BAR)
    sizes.bar_label(bars, [f"{count:,}" for count in counts[frequent]], padding=3, color=_TEXT, fontsize=8)
    sizes.set_yticks(places, [_label(tuple(grid), scale) for grid in grids[frequent].tolist()], fontsize=8)
    sizes.invert_yaxis()
    rest = len(grids) - len(frequent)
    sizes.set(xlabel="samples" + (f" ({rest:,} rarer sizes are not shown)" if rest else ""))
    sizes.margins(x=0.12)
    for axis in (lengths.xaxis, lengths.yaxis, sizes.xaxis):
        axis.set_major_formatter(thousands)
    for axis in (lengths.yaxis, sizes.xaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    for axes in (lengths, sizes):
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _edges(tokens: np.ndarray) -> np.ndarray:
    """Bin edges: equal steps, or equal ratios where lengths differ by much. No length lies on the outer ones."""
    low, high = float(tokens.min()), float(tokens.max())
    if _is_wide(tokens):
        return np.geomspace(0.95 * low, 1.05 * high, _BINS + 1)
    margin = max(4.5, (high - low) / _BINS)
    first, last = max(0.5, low - margin), high + margin
    return np.linspace(first, last, min(_BINS, int(last - first)) + 1)


def _range(tokens: np.ndarray) -> str:
    return " to ".join(f"{length:,}" for length in sorted({int(tokens.min()), int(tokens.max())}))


def _is_wide(tokens: np.ndarray) -> bool:
    return bool(tokens.max() > 20 * tokens.min())


def _label(grid: tuple[int, int, int], scale: Scale) -> str:
    frames, height, width = scale.pixels(grid)
    size = "x".join(map(str, grid))
    return f"{Bucket(width, height, frames)}   {size} = {int(np.prod(grid)):,}"
