"""Means of a step's losses by noise level and by length: where a model learns, and where it does not.

Both are known without a word between ranks: the losses come from the step's one reduction, the noise levels are drawn
again from the seed, and lengths are in the plan.
"""

from __future__ import annotations

import numpy as np

SIGMA_BINS = 4


def by_sigma(losses: np.ndarray, sigmas: np.ndarray) -> dict[str, float]:
    """Mean loss by quarter of [0, 1], for quarters with a sample: `train/loss_sigma_0.00-0.25` and so on.

    `losses` float64 [B]: each sample's own; `sigmas` float32 [B] in [0, 1], of which 1 belongs to the last quarter.
    """
    places = np.minimum((sigmas * SIGMA_BINS).astype(np.int64), SIGMA_BINS - 1)
    return {
        f"train/loss_sigma_{place / SIGMA_BINS:.2f}-{(place + 1) / SIGMA_BINS:.2f}": mean
        for place, mean in _means(losses, places)
    }


def by_length(losses: np.ndarray, tokens: np.ndarray) -> dict[str, float]:
    """Mean loss by power of two: `train/loss_length_1024` is of samples of 1024 to 2047 `tokens` int64 [B]."""
    # frexp is exact where log2 may round a power of two into the wrong bin.
    powers = np.frexp(tokens.astype(np.float64))[1] - 1
    return {f"train/loss_length_{1 << power}": mean for power, mean in _means(losses, powers)}


def _means(values: np.ndarray, places: np.ndarray) -> list[tuple[int, float]]:
    found, inverse, counts = np.unique(places, return_inverse=True, return_counts=True)
    means = np.bincount(inverse, weights=values) / counts
    return list(zip(found.tolist(), means.tolist(), strict=True))
