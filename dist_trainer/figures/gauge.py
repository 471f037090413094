"""A step's figures, by TensorBoard name, from what its one reduction brought and what is known without asking."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dist_trainer.build import Data
from dist_trainer.feed import flow
from dist_trainer.feed.feed import MicroStep
from dist_trainer.feed.substitute import drawn_as
from dist_trainer.figures import bins
from dist_trainer.figures.metrics import ReducedStep
from dist_trainer.figures.utilization import Utilization
from dist_trainer.replaced import Ledger, Replaced
from dist_trainer.skipped import Skipped, Skips
from shards.plan import Step


class Gauge:
    """Makes figures of the steps of a run; `utilization` is None where the devices' peak is not known."""

    def __init__(self, data: Data, utilization: Utilization | None) -> None:
        self._manifest, self._plan, self._recipe = data.dataset.manifest, data.plan, data.feeding.recipe
        self._target_tokens = self._manifest.target_tokens(self._recipe.patch)
        self._utilization = utilization

    def figures(self, micro: MicroStep, reduced: ReducedStep, elapsed_s: float) -> dict[str, float]:
        """Those of a step, of which `micro` is the last micro-step; learning rate, norm and faults aside."""
        step, layout, rows = micro.step, micro.layout, reduced.rows
        tokens = self._plan.tokens[rows]
        heaviest = micro.loads.max(axis=1) / micro.loads.mean(axis=1)
        found = {
            "train/loss": reduced.loss,
            "speed/tokens_per_s": float(tokens.sum()) / elapsed_s,
            "speed/samples_per_s": len(rows) / elapsed_s,
            "time/step_s": elapsed_s,
            "time/data_wait_s": reduced.data_wait_s,
            "time/forward_s": float(reduced.computed_s.max()),
            "pack/efficiency": layout.useful,
            "pack/balance": float(heaviest.mean()),
            "pack/micro_steps": float(len(layout.packs)),
            "pack/idle": layout.idle,
            "balance/planned": _unevenness(micro.loads.sum(axis=0)),
            "balance/measured": _unevenness(reduced.computed_s),
            "memory/peak_gib": reduced.peak_bytes / 2**30,
        }
        if self._utilization:
            found |= self._utilization.figures(tokens, self._manifest.text_tokens[rows], elapsed_s)
        losses = reduced.losses / micro.shares
        return found | bins.by_sigma(losses, self.sigmas(step, rows)) | bins.by_length(losses, tokens)

    def sigmas(self, step: Step, rows: np.ndarray) -> np.ndarray:
        """Noise levels float32 [B] of a step in which the manifest rows `rows` int64 [B] were trained."""
        ids = self._manifest.ids[rows]
        for place in np.flatnonzero(rows != step.rows).tolist():
            ids[place] = drawn_as(int(self._manifest.ids[step.rows[place]]), int(ids[place]))
        recipe = self._recipe
        return flow.sigmas(recipe.seed, step.epochs, ids, self._target_tokens[rows], recipe.sampling)


def faults(
    step: Step, skips: Skips, skipped: Skipped | None, ledger: Ledger, replaced: Sequence[Replaced]
) -> dict[str, float]:
    """What went wrong in a step, and so far, by TensorBoard name."""
    return {
        "train/skipped": float(skipped is not None),
        "train/skipped_total": float(skips.total),
        "data/skipped_samples": float(len(step.rows) if skipped else 0),
        "data/replaced": float(len(replaced)),
        "data/replaced_total": float(ledger.total),
    }


def _unevenness(loads: np.ndarray) -> float:
    """The greatest of the ranks' loads [R] over their mean: 1 where all have the same."""
    mean = float(loads.mean())
    return float(loads.max()) / mean if mean > 0 else 1.0
