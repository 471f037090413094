"""Which sample is trained in place of a damaged one: a pure function of seed, epoch, sample and manifest.

No rank, no order of reading and no memory of what was damaged before, so any number of ranks agrees without a
word, and a resumed run repeats what the uninterrupted one did.
"""

from __future__ import annotations

import numpy as np

from shards.dataset.manifest import Manifest
from shards.hashing import mix

ATTEMPTS = 8

# Keep the two uses apart from each other and from the streams that flow.py draws.
_ORDER, _DRAW = 101, 102


def substitutes(
    manifest: Manifest, tokens: np.ndarray, seed: int, epoch: int, row: int, count: int = ATTEMPTS
) -> np.ndarray:
    """Rows int64 [at most `count`] to try in place of `row`, in this order; `row` is not among them.

    `tokens` int64 [N]: L of every sample as the plan counts it. First come samples of the same latent grid and as
    many tokens: with one of them the step's packs, weights and memory stay as they were planned. Then the others
    that are not larger, nearest in tokens first. A larger one is never tried, as a pack that is full with the
    damaged sample would exceed the cap with it; where no other sample is as small there is none to try. Equals are
    in the order of a hash of (seed, epoch, id of `row`, own id), which differs from damaged sample to damaged sample.
    """
    fit = np.flatnonzero(tokens <= tokens[row])
    fit = fit[fit != row]
    count = min(count, len(fit))
    if not count:
        return fit
    distance = 1 + tokens[row] - tokens[fit]
    distance[(manifest.grid[fit] == manifest.grid[row]).all(axis=1) & (distance == 1)] = 0
    near = distance <= np.partition(distance, count - 1)[count - 1]
    fit, distance = fit[near], distance[near]
    keys = mix(_ORDER, seed, epoch, manifest.ids[row], manifest.ids[fit])
    return fit[np.lexsort((keys, distance))][:count]


def drawn_as(damaged: int, replacement: int) -> int:
    """The id under which noise and sigma of a replacement are drawn, from the ids of both samples.

    The replacement is trained for itself in the same epoch: under its own id it would get the same noise twice.
    """
    return int(mix(_DRAW, damaged, replacement))
