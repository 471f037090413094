"""A pack: one rank's micro-batch, samples of any size laid end to end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_trainer.feed import flow
from dist_trainer.feed.conditioning import Conditioned, Recipe, build, latent_grid
from dist_trainer.model.attention import Lengths
from shards.errors import InputError
from shards.formats.sample import Sample


@dataclass(frozen=True, eq=False)
class Pack:
    """N tokens and M text tokens of S samples. Positions and weights refer to the step the pack belongs to.

    tokens [N,Cin], text [M,Dtext]: the compute dtype. timesteps int64 [U]: distinct ones; timestep_index
    int64 [N]. coords float32 [3,N]. loss_index int64 [K]: the tokens with a loss, sample by sample;
    loss_lengths int64 [S]: how many of each sample; target float32 [K,Cin]: their velocity. positions int64
    [S]: in the step, -1 in an idle pack. elements int64 [S]: numbers in each sample's loss. weights float32
    [S], sigmas float32 [S]. keys: of the samples.
    """

    tokens: Tensor
    text: Tensor
    timesteps: Tensor
    timestep_index: Tensor
    coords: Tensor
    lengths: Lengths
    text_lengths: Lengths
    loss_index: Tensor
    loss_lengths: Tensor
    target: Tensor
    positions: Tensor
    elements: Tensor
    weights: Tensor
    sigmas: Tensor
    keys: tuple[str, ...]

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Lengths, Lengths]:
        """The positional arguments of the packed model."""
        return (
            self.tokens,
            self.text,
            self.timesteps,
            self.timestep_index,
            self.coords,
            self.lengths,
            self.text_lengths,
        )

    def to(self, device: torch.device | str, dtype: torch.dtype, non_blocking: bool = False) -> Pack:
        """The pack on `device`; tokens and text in `dtype`, everything else as it is."""
        moved = self._each_tensor(lambda x: x.to(device, non_blocking=non_blocking))
        return replace(
            moved,
            tokens=moved.tokens.to(dtype),
            text=moved.text.to(dtype),
            lengths=self.lengths.to(device, non_blocking),
            text_lengths=self.text_lengths.to(device, non_blocking),
        )

    def pin(self) -> Pack:
        """The pack in page-locked memory, from which a copy to the GPU does not hold up the host."""
        return self._each_tensor(Tensor.pin_memory)

    def _each_tensor(self, change: Callable[[Tensor], Tensor]) -> Pack:
        changed: dict[str, Any] = {
            name: change(value) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


def draws(samples: Sequence[Sample], epochs: Sequence[int], recipe: Recipe) -> list[flow.Draw]:
    """What chance gives each sample in its epoch: the same on any rank, device and in any order."""
    ids = np.array([sample.id for sample in samples], dtype=np.uint64)
    grids = [latent_grid(sample.latents, recipe.patch, sample.key) for sample in samples]
    tokens = [grid.tokens(recipe.patch) for grid in grids]
    levels = flow.sigmas(recipe.seed, epochs, ids, tokens, recipe.sampling)
    coins = flow.coins(recipe.seed, epochs, ids, recipe.first_frame_p)
    return [
        flow.Draw(
            float(sigma), flow.noise(recipe.seed, epoch, sample.id, sample.latents.shape), bool(first_frame)
        )
        for sample, epoch, sigma, first_frame in zip(samples, epochs, levels, coins, strict=True)
    ]


def collate(
    samples: Sequence[Sample],
    draws: Sequence[flow.Draw],
    recipe: Recipe,
    positions: Sequence[int],
    weights: Sequence[float],
) -> Pack:
    """Lay S samples, each with its draw, end to end, on the CPU in float32.

    `positions`: each sample's place in the step. `weights`: of its sum of squared errors in the step's loss
    (`loss.loss_weights`). Raises InputError naming the sample on missing references, sizes that do not fit,
    empty text.
    """
    if not samples:
        raise ValueError("a pack needs a sample; a rank without one runs idle()")
    parts = [build(sample, draw, recipe) for sample, draw in zip(samples, draws, strict=True)]
    texts = [_text(sample) for sample in samples]
    timesteps, timestep_index = _timesteps(parts)
    ends = accumulate(len(part.tokens) for part in parts)
    loss_index = [torch.arange(end - len(part.target), end) for part, end in zip(parts, ends, strict=True)]
    return Pack(
        tokens=torch.cat([part.tokens for part in parts]),
        text=torch.cat(texts),
        timesteps=timesteps,
        timestep_index=timestep_index,
        coords=torch.cat([part.coords for part in parts], dim=1),
        lengths=Lengths.of([len(part.tokens) for part in parts]),
        text_lengths=Lengths.of([len(text) for text in texts]),
        loss_index=torch.cat(loss_index),
        loss_lengths=torch.tensor([len(part.target) for part in parts]),
        target=torch.cat([part.target for part in parts]),
        positions=torch.tensor([int(position) for position in positions]),
        elements=torch.tensor([part.target.numel() for part in parts]),
        weights=torch.tensor([float(weight) for weight in weights], dtype=torch.float32),
        sigmas=torch.tensor([draw.sigma for draw in draws], dtype=torch.float32),
        keys=tuple(sample.key for sample in samples),
    )


def idle(channels: int, text_width: int) -> Pack:
    """A pack for a rank without a sample: one token of weight zero, so that it keeps step with the others.

    `channels`: the transformer's in_channels. `text_width`: its caption_channels.
    """
    one = Lengths.of([1])
    return Pack(
        tokens=torch.zeros(1, channels),
        text=torch.zeros(1, text_width),
        timesteps=torch.zeros(1, dtype=torch.int64),
        timestep_index=torch.zeros(1, dtype=torch.int64),
        coords=torch.zeros(3, 1),
        lengths=one,
        text_lengths=one,
        loss_index=torch.zeros(1, dtype=torch.int64),
        loss_lengths=torch.ones(1, dtype=torch.int64),
        target=torch.zeros(1, channels),
        positions=torch.tensor([-1]),
        elements=torch.zeros(1, dtype=torch.int64),
        weights=torch.zeros(1),
        sigmas=torch.zeros(1),
        keys=("",),
    )


def _timesteps(parts: Sequence[Conditioned]) -> tuple[Tensor, Tensor]:
    """Distinct timesteps int64 [U] of the pack and, for each token, which one it has: int64 [N]."""
    values = sorted({part.timestep for part in parts} | ({0} if any(part.clean for part in parts) else set()))
    row = {value: index for index, value in enumerate(values)}
    rows = [
        row[value] for part in parts for value in ((0, part.timestep) if part.clean else (part.timestep,))
    ]
    counts = [
        n for part in parts for n in ((part.clean, len(part.target)) if part.clean else (len(part.target),))
    ]
    return torch.tensor(values), torch.repeat_interleave(torch.tensor(rows), torch.tensor(counts))


def _text(sample: Sample) -> Tensor:
    if sample.prompt_embeds.shape[0] == 0:
        raise InputError(f"sample {sample.key!r} has no text tokens; an empty caption still encodes to one")
    return sample.prompt_embeds
