"""The figures of a step, brought together from all ranks in one reduction."""

from __future__ import annotations

import resource
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as torch_dist

from dist_trainer.replaced import Replaced
from dist_trainer.skipped import Skipped
from dist_trainer.stop import Wish
from shards.plan import Step

_READINGS = 3


@dataclass(frozen=True)
class StepMetrics:
    """What one optimizer step did: the ids it trained, its figures by TensorBoard name, what it replaced, and why it
    was skipped (None: it was not).
    """

    step: int
    epochs: list[int]
    ids: list[int]
    figures: dict[str, float]
    replaced: Sequence[Replaced] = ()
    skipped: Skipped | None = None


class StepSums:
    """Per-sample losses and per-rank readings of one step, summed over the ranks.

    The vector has a place for each sample of the step, in the plan's order, so its content (and the loss made from
    it) does not depend on which rank trained what.
    """

    def __init__(self, samples: int, ranks: int, rank: int, device: torch.device) -> None:
        self._samples, self._ranks, self._rank = samples, ranks, rank
        # Three entries per sample (weighted loss, times trained, manifest row), three per rank (data wait, memory, time
        # computed), and how many ranks have each wish.
        entries = 3 * samples + _READINGS * ranks + len(Wish)
        self._sums = torch.zeros(entries, dtype=torch.float64, device=device)

    def add(self, positions: torch.Tensor, weighted: torch.Tensor, rows: np.ndarray) -> None:
        """Add the weighted losses [S] of a pack's samples at `positions` int64 [S] of the step.

        `rows` int64 [S]: the manifest rows that were really trained there; a float64 holds them exactly.
        """
        sums, trained = self._sums, torch.ones_like(weighted, dtype=torch.float64)
        sums.index_add_(0, positions, weighted.detach().to(torch.float64))
        sums.index_add_(0, positions + self._samples, trained)
        found = torch.from_numpy(rows).to(torch.float64).to(sums.device, non_blocking=True)
        sums.index_add_(0, positions + 2 * self._samples, found)

    def reduce(self, data_wait_s: float, computed_s: float, wish: Wish = Wish.NONE) -> ReducedStep:
        """Sum over all ranks; every rank gets the same result, and with it the greatest wish of all."""
        own = 3 * self._samples + _READINGS * self._rank
        self._sums[own] = data_wait_s
        self._sums[own + 1] = _peak_bytes(self._sums.device)
        self._sums[own + 2] = computed_s
        self._sums[wish - len(Wish)] += 1
        torch_dist.all_reduce(self._sums)
        sums = self._sums.cpu().numpy()
        losses, trained, rows = sums[: 3 * self._samples].reshape(3, self._samples)
        readings = sums[3 * self._samples : -len(Wish)].reshape(self._ranks, _READINGS)
        return ReducedStep(
            losses=losses,
            trained=trained,
            rows=rows.astype(np.int64),
            data_wait_s=float(readings[:, 0].max()),
            peak_bytes=float(readings[:, 1].max()),
            computed_s=readings[:, 2],
            wish=Wish(int(np.flatnonzero(sums[-len(Wish) :])[-1])),
        )


@dataclass(frozen=True)
class ReducedStep:
    """A step over all ranks: weighted loss [B], times trained [B] and manifest row [B] int64 of each sample as it was
    trained; largest data wait and memory peak; seconds [R] that each rank computed; the greatest wish.
    """

    losses: np.ndarray
    trained: np.ndarray
    rows: np.ndarray
    data_wait_s: float
    peak_bytes: float
    computed_s: np.ndarray
    wish: Wish = Wish.NONE

    @property
    def loss(self) -> float:
        """The step's loss: the weighted mean the optimizer saw."""
        return float(self.losses.sum())

    def check(self, step: Step, keys: np.ndarray) -> None:
        """Raise RuntimeError, alike on every rank, when a sample was lost or repeated."""
        wrong = np.flatnonzero(self.trained != 1)
        if wrong.size:
            named = ", ".join(str(keys[step.rows[i]]) for i in wrong[:5])
            raise RuntimeError(f"step {step.index + 1}: samples not trained exactly once: {named}")


def forget_peak() -> None:
    """Let the memory's peak begin anew, after a look at the model, which takes other memory than training.

    Not after each step: a step's peak is read before the optimizer's turn, whose own shows in the steps after it.
    """
    if torch.cuda.is_initialized():
        torch.cuda.reset_peak_memory_stats()


def _peak_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
