"""A picture of how long a dataset's samples are, and which sizes make them so."""

from __future__ import annotations

import io

import numpy as np

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

    tokens = manifest.tokens()
    grids, counts = np.unique(manifest.grid, axis=0, return_counts=True)
    frequent = np.argsort(-counts, kind="stable")[:_SIZES]
    figure = Figure(figsize=(10, 4.5 + 0.3 * len(frequent)), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    lengths, sizes = figure.subplots(2, 1, height_ratios=[10, 2 + len(frequent)])
    edges = _edges(tokens)
    lengths.hist(tokens, bins=edges, color=_BAR)
    if edges[-1] > 20 * edges[0]:
        lengths.set_xscale("log")
    for grid in grids[frequent]:
        lengths.axvline(int(np.prod(grid)), color=_MARK, linewidth=0.8, alpha=0.7)
    lengths.set(
        xlabel="tokens of a sample (lines: the sizes below, without references)",
        ylabel="samples",
        title=title,
    )
    places = np.arange(len(frequent))
    bars = sizes.barh(places, counts[frequent], color=_BAR)
    sizes.bar_label(bars, [f"{count:,}" for count in counts[frequent]], padding=3, color=_TEXT, fontsize=8)
    sizes.set_yticks(places, [_label(tuple(grid), scale) for grid in grids[frequent].tolist()], fontsize=8)
    sizes.invert_yaxis()
    rest = len(grids) - len(frequent)
    sizes.set(xlabel="samples" + (f" ({rest} rarer sizes are not shown)" if rest else ""))
    sizes.margins(x=0.12)
    for axes in (lengths, sizes):
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _edges(tokens: np.ndarray) -> np.ndarray:
    """Bin edges: equal steps, or equal ratios where lengths differ by much."""
    low, high = float(tokens.min()), float(tokens.max()) + 1
    bins = min(_BINS, max(8, int(high - low)))
    if high > 20 * low:
        return np.geomspace(low, high, bins + 1)
    return np.linspace(low, high, bins + 1)


def _label(grid: tuple[int, int, int], scale: Scale) -> str:
    frames, height, width = scale.pixels(grid)
    size = "x".join(map(str, grid))
    return f"{Bucket(width, height, frames)}   {size} = {int(np.prod(grid)):,}"
