"""What one measurement of the held-out loss passes through the model, laid over the ranks. Imports without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dist_trainer.feed.holdout import partners
from shards.dataset.manifest import Manifest
from shards.geometry import Patch
from shards.pack import Layout, costs, loads, pack

SIGMAS = (0.125, 0.375, 0.625, 0.875)
TRUE, SHUFFLED, ABSENT = "true", "shuffled", "absent"


@dataclass(frozen=True, eq=False)
class Round:
    """All samples at all noise levels with one kind of reference: item i is row i // 4 at SIGMAS[i % 4].

    `rows`, `lenders` int64 [n]: the rows, and those whose references they get. `layout`: of the items over the ranks.
    `span`: cost of the dearest packs of all its micro-steps, as `shards.pack.costs` counts.
    """

    kind: str
    rows: np.ndarray
    lenders: np.ndarray
    layout: Layout
    span: int


def rounds(
    manifest: Manifest, mode: str, patch: Patch, quadratic: float, cap: int, ranks: int
) -> list[Round]:
    """The rounds over all samples of a manifest: one, and with `mode` reference_video three.

    The second of the three is of the samples that have a partner; it is left out where none has one. `quadratic`,
    `cap`: of training.
    """

    def made(kind: str, rows: np.ndarray, lenders: np.ndarray) -> Round:
        whole = manifest.target_tokens if mode == "none" or kind == ABSENT else manifest.tokens
        tokens = np.repeat(whole(patch)[rows], len(SIGMAS))
        cost = costs(tokens, quadratic)
        # Without gradients a pack takes far less memory than in training: a longer sample fits.
        layout = pack(tokens, cost, ranks, max(cap, int(tokens.max())))
        return Round(kind, rows, lenders, layout, int(loads(layout, cost).max(axis=1).sum()))

    every = np.arange(len(manifest))
    found = [made(TRUE, every, every)]
    if mode == "reference_video":
        lenders = partners(manifest)
        paired = np.flatnonzero(lenders >= 0)
        if len(paired):
            found.append(made(SHUFFLED, paired, lenders[paired]))
        found.append(made(ABSENT, every, every))
    return found
