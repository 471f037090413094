"""Flow matching: what is drawn for a sample, how it is noised, what the model has to predict, how far off it
was.

Everything random is keyed by (run seed, epoch, sample id) and drawn on the CPU in fixed precision: never by
rank, order or device, so a step is the same on any number of ranks. Coins and sigmas need no data: every rank
can know those of the whole step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from shards.errors import InputError
from shards.hashing import mix, unit

Ints = npt.ArrayLike
SamplingMode = Literal["uniform", "shifted_logit_normal"]

# Separate the streams of one sample, so that its coin tells nothing about its sigma.
_COIN, _SIGMA, _SIGMA_ANGLE, _NOISE = 1, 2, 3, 4
_TRAIN_TIMESTEPS = 1000


@dataclass(frozen=True)
class Sampling:
    """How noise levels are drawn.

    `uniform`: from [min_value, max_value). `shifted_logit_normal`: sigmoid(std * n + shift(L)) with n ~
    N(0,1) and L the sample's target tokens, held inside [min_tokens, max_tokens] where those are given (the
    shift grows without end, and long samples otherwise see almost nothing but noise).
    """

    mode: SamplingMode = "shifted_logit_normal"
    min_value: float = 0.0
    max_value: float = 1.0
    std: float = 1.0
    min_tokens: int | None = None
    max_tokens: int | None = None


class Draw(NamedTuple):
    """What chance gave one sample: `sigma` in [0,1], `noise` float32 [C,F,H,W], whether the first frame is
    clean.
    """

    sigma: float
    noise: Tensor
    first_frame: bool


def coins(seed: int, epochs: Ints, ids: Ints, p: float) -> npt.NDArray[np.bool_]:
    """First-frame coins of B samples, true with probability `p`. `epochs` ints [B], `ids` uint64 [B]; bool
    [B].
    """
    return unit(mix(_COIN, seed, _words(epochs), _words(ids))) < p


def sigmas(
    seed: int, epochs: Ints, ids: Ints, target_tokens: Ints, sampling: Sampling
) -> npt.NDArray[np.float32]:
    """Noise levels of B samples: float32 [B] in [0,1]. `target_tokens` ints [B], reference tokens not
    counted.

    Raises InputError on an unknown mode.
    """
    first = unit(mix(_SIGMA, seed, _words(epochs), _words(ids)))
    if sampling.mode == "uniform":
        span = sampling.max_value - sampling.min_value
        return (sampling.min_value + span * first).astype(np.float32)
    if sampling.mode == "shifted_logit_normal":
        second = unit(mix(_SIGMA_ANGLE, seed, _words(epochs), _words(ids)))
        normal = np.sqrt(-2.0 * np.log1p(-first)) * np.cos(2.0 * np.pi * second)  # Box-Muller
        logit = sampling.std * normal + shift(target_tokens, sampling)
        return (1.0 / (1.0 + np.exp(-logit))).astype(np.float32)
    raise InputError(
        f"flow_matching.timestep_sampling_mode: {sampling.mode!r} is not known;"
        " use 'uniform' or 'shifted_logit_normal'"
    )


def shift(target_tokens: Ints, sampling: Sampling) -> npt.NDArray[np.float64]:
    """Mean of the logit of sigma for samples of `target_tokens` tokens: the line through (1024, 0.95), (4096,
    2.05).

    Source: LTX-Video-Trainer, ShiftedLogitNormalTimestepSampler, which does not clamp.
    """
    tokens = np.asarray(target_tokens, dtype=np.float64)
    if sampling.min_tokens is not None:
        tokens = np.maximum(tokens, sampling.min_tokens)
    if sampling.max_tokens is not None:
        tokens = np.minimum(tokens, sampling.max_tokens)
    return 0.95 + (tokens - 1024) * ((2.05 - 0.95) / (4096 - 1024))


def noise(seed: int, epoch: int, id: int, shape: Sequence[int]) -> Tensor:
    """Standard normal noise for one sample: float32 of `shape`, on the CPU whatever the training device
    is.
    """
    generator = torch.Generator().manual_seed(int(mix(_NOISE, seed, epoch, id)))
    return torch.randn(tuple(shape), generator=generator, dtype=torch.float32)


def timestep(sigma: float) -> int:
    """The timestep the model is told for a noise level: round(1000 sigma), an integer as in LTX-Video-
    Trainer.
    """
    return int(np.rint(np.float32(sigma) * np.float32(_TRAIN_TIMESTEPS)))


def add_noise(clean: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """`(1 - sigma) * clean + sigma * noise`, any shape."""
    return (1.0 - sigma) * clean + sigma * noise


def velocity(clean: Tensor, noise: Tensor) -> Tensor:
    """What the model predicts: `noise - clean`, any shape."""
    return noise - clean


def _words(values: Ints) -> npt.NDArray[np.uint64]:
    return np.asarray(values).astype(np.uint64)
