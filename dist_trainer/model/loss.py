"""How far off a prediction was: sums of squared errors by sample, and their weights in the step's loss."""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dist_trainer.feed.collate import Pack
from shards.errors import InputError

Weighting = Literal["sample", "token"]


def loss_weights(elements: npt.ArrayLike, weighting: Weighting) -> npt.NDArray[np.float64]:
    """Weights [B] that turn sums of squared errors of a whole step's B samples into its loss: `(sums *
    weights).sum()`.

    `elements` ints [B]: loss elements of each sample. `sample`: every sample counts the same (mean of means);
    `token`: every element counts the same. The weights depend on the step alone, so they hold on any number
    of ranks.
    """
    counts = np.asarray(elements, dtype=np.float64)
    if weighting == "sample":
        return 1.0 / (counts * len(counts))
    if weighting == "token":
        return np.full(len(counts), 1.0 / counts.sum())
    raise InputError(f"loss_weighting: {weighting!r} is not known; use 'sample' or 'token'")


def sample_sums(prediction: Tensor, pack: Pack) -> Tensor:
    """Sum of squared errors of each sample of a pack: float32 [S], over `pack.elements` numbers each.

    `prediction` [N,Cout], any float dtype; only target tokens that are not a clean first frame count.
    Channels are summed in float32, then tokens in float64, so that 4M elements keep float32 accuracy in the
    sum.
    """
    errors = prediction.index_select(0, pack.loss_index).float() - pack.target
    per_token = errors.square().sum(-1).double()
    # unsafe skips the check of the lengths, which would wait for the device; collate made them.
    sums = torch.segment_reduce(per_token, "sum", lengths=pack.loss_lengths, unsafe=True)
    return sums.float()
