"""A picture of how a run learned."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from dist_trainer.logs import records
from dist_trainer.rundir import RunFolder

_RAW, _LINE, _HELD = "#bbccee", "#4477aa", "#cc6677"
_WINDOWS = 50  # the smoothed line averages over a fiftieth of the run


def picture(folder: RunFolder, until: int) -> bytes | None:
    """PNG of the loss, raw and smoothed, the held-out loss where there is one, and the learning rate, up to a step.

    None where nothing is known.
    """
    steps, losses = _series(records(folder.metrics, until), "train/loss")
    if not len(steps):
        return None
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, height_ratios=[3, 1], sharex=True)
    upper.plot(steps, losses, color=_RAW, linewidth=0.8, label="training loss")
    window = max(1, len(losses) // _WINDOWS)
    if window > 1:
        smooth = np.convolve(losses, np.ones(window) / window, mode="valid")
        upper.plot(steps[window - 1 :], smooth, color=_LINE, linewidth=1.6, label=f"mean of {window} steps")
    held_steps, held = _series(records(folder.figures, until), "heldout/loss")
    if len(held_steps):
        upper.plot(held_steps, held, color=_HELD, marker="o", markersize=3, label="held-out loss")
    upper.set_ylabel("loss")
    upper.legend(frameon=False)
    rate_steps, rates = _series(records(folder.metrics, until), "train/learning_rate")
    lower.plot(rate_steps, rates, color=_LINE)
    lower.set(xlabel="step", ylabel="learning rate")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()


def _series(found: Sequence[dict[str, Any]], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps int64 [N] and values float64 [N] of the records that have a figure."""
    points = [(record["step"], record[name]) for record in found if record.get(name) is not None]
    return np.array([step for step, _ in points], np.int64), np.array([value for _, value in points], float)
