"""From latents to the tokens the transformer sees: order, coordinates, and which tokens are clean.

Training, validation and export share this file: what is trained is what is sampled. One sample is laid out as
`[clean references | target]`, and with a clean first frame the target begins with clean tokens too, so the
clean tokens of a sample are always its first ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from dist_trainer.feed import flow
from shards.errors import InputError
from shards.formats.sample import Sample
from shards.geometry import Grid, Patch, Scale

Mode = Literal["none", "reference_video"]


@dataclass(frozen=True)
class Recipe:
    """How samples become training examples, as plain values.

    `scale`: compression of the VAE. `patch`: of the transformer. `causal`: coordinates of
    LTXConditionPipeline instead of LTXPipeline's. `first_frame_p`: probability that a sample of more than one
    frame keeps its first frame clean.
    """

    scale: Scale
    patch: Patch
    mode: Mode = "none"
    first_frame_p: float = 0.1
    causal: bool = False
    sampling: flow.Sampling = field(default_factory=flow.Sampling)
    seed: int = 0


class ReferenceScale(NamedTuple):
    """Integer factors by which a reference is smaller than its target, along each latent axis."""

    frames: int = 1
    height: int = 1
    width: int = 1


SAME_SIZE = ReferenceScale()


@dataclass(frozen=True, eq=False)
class Conditioned:
    """One sample ready for a pack.

    `tokens` float32 [L,Cin], the first `clean` of them clean; `coords` float32 [3,L]; `target` float32
    [L-clean,Cin], the velocity of the noisy ones; `timestep` of the noisy ones (clean ones have 0).
    """

    tokens: Tensor
    coords: Tensor
    clean: int
    target: Tensor
    timestep: int


def patchify(latents: Tensor, patch: Patch) -> Tensor:
    """Latents [C,F,H,W] to tokens [L, C*t*s*s] in frame, height, width order. Same as
    LTXPipeline._pack_latents.
    """
    t, s = patch
    channels, frames, height, width = latents.shape
    cut = latents.reshape(channels, frames // t, t, height // s, s, width // s, s)
    return cut.permute(1, 3, 5, 0, 2, 4, 6).flatten(3).flatten(0, 2)


def unpatchify(tokens: Tensor, grid: Grid, patch: Patch) -> Tensor:
    """The inverse of `patchify`: tokens [L, C*t*s*s] of a latent `grid` back to latents [C,F,H,W]."""
    t, s = patch
    frames, height, width = grid
    cut = tokens.reshape(frames // t, height // s, width // s, -1, t, s, s)
    return cut.permute(3, 0, 4, 1, 5, 2, 6).reshape(-1, frames, height, width)


def coordinates(
    grid: Grid,
    fps: float,
    scale: Scale,
    patch: Patch,
    causal: bool = False,
    reference_scale: ReferenceScale = SAME_SIZE,
) -> Tensor:
    """Where each token of a latent grid lies: float32 [3,L], seconds, pixel row, pixel column.

    Plain form: k*t/fps, bit-equal to diffusers' `rope_interpolation_scale = (t/fps, s, s)`. Causal form, of
    LTXConditionPipeline and LTX-2: the first latent frame holds one frame and not t, so max(0, k*t -
    (t-1))/fps. A reference that is smaller by integer factors is spread over the target's coordinates; in the
    causal form each of its frames starts where the first of the target frames it stands for starts (LTX-2's
    trainer).
    """
    axes = (
        torch.arange(grid.frames // patch.temporal),
        torch.arange(grid.height // patch.spatial),
        torch.arange(grid.width // patch.spatial),
    )
    frame, row, column = (axis.flatten() for axis in torch.meshgrid(*axes, indexing="ij"))
    factor = reference_scale
    if causal:
        start = (frame * patch.temporal * scale.temporal + 1 - scale.temporal) * factor.frames
        seconds = (start - (factor.frames - 1)).clamp(min=0).float() * (1.0 / fps)
    else:  # the order of the products is diffusers', for the last bit
        seconds = frame.float() * (scale.temporal / fps) * (patch.temporal * factor.frames)
    pixels = scale.spatial * patch.spatial
    return torch.stack(
        [seconds, (row * pixels * factor.height).float(), (column * pixels * factor.width).float()]
    )


def reference_scale(target: Grid, reference: Grid, key: str) -> ReferenceScale:
    """Factors that spread `reference` over `target`. Frames count from the first one, which both have:
    (F-1) / (F'-1); a single-frame reference lies on the first frame.

    Raises InputError, naming sample `key`, when a factor is not a positive integer.
    """
    return ReferenceScale(
        _factor(target, reference, key, "frames", offset=1) if reference.frames > 1 else 1,
        _factor(target, reference, key, "height"),
        _factor(target, reference, key, "width"),
    )


def _factor(target: Grid, reference: Grid, key: str, axis: str, offset: int = 0) -> int:
    large, small = getattr(target, axis) - offset, getattr(reference, axis) - offset
    if small < 1 or large < small or large % small:
        raise InputError(
            f"sample {key!r}: reference latents {tuple(reference)} (frames, height, width) do not divide"
            f" the target's {tuple(target)} along {axis}; encode the reference at the target's size or at an"
            " integer fraction of it"
        )
    return large // small


def layout(grid: Grid, references: Sequence[Grid], fps: float, recipe: Recipe, key: str) -> Tensor:
    """Coordinates float32 [3,L] of `[references | target]`, every reference spread over the target's.

    Raises InputError, naming sample `key`, on sizes that do not fit each other or a useless fps.
    """
    if not fps > 0:
        raise InputError(f"sample {key!r}: fps is {fps}, it must be positive")
    factors = [reference_scale(grid, reference, key) for reference in references]
    parts = zip([*references, grid], [*factors, SAME_SIZE], strict=True)
    return torch.cat(
        [coordinates(part, fps, recipe.scale, recipe.patch, recipe.causal, factor) for part, factor in parts],
        dim=1,
    )


def latent_grid(latents: Tensor, patch: Patch, key: str) -> Grid:
    """Size of latents [C,F,H,W]. Raises InputError, naming sample `key`, when they are not whole patches."""
    grid = Grid(*latents.shape[1:])
    if grid.frames % patch.temporal or grid.height % patch.spatial or grid.width % patch.spatial:
        raise InputError(
            f"sample {key!r}: latents {tuple(grid)} (frames, height, width) are not whole patches of"
            f" {tuple(patch)} (temporal, spatial)"
        )
    return grid


def first_frame_tokens(grid: Grid, patch: Patch) -> int:
    """Tokens of the first frame; 0 for a single-frame sample, which would have nothing left to learn."""
    if grid.frames <= patch.temporal:
        return 0
    return (grid.height // patch.spatial) * (grid.width // patch.spatial)


def loss_elements(grid: Grid, patch: Patch, first_frame: bool, channels: int) -> int:
    """Numbers the loss of a sample is a mean of: target elements that are not a clean first frame.

    `channels`: of the latents (before patching). Known from the manifest and the coins, without reading data.
    """
    tokens = grid.tokens(patch) - (first_frame_tokens(grid, patch) if first_frame else 0)
    return tokens * channels * patch.temporal * patch.spatial**2


def build(sample: Sample, draw: flow.Draw, recipe: Recipe) -> Conditioned:
    """Condition and noise one sample.

    Raises InputError when the mode asks for a reference the sample lacks, or when sizes do not fit.
    """
    grid = latent_grid(sample.latents, recipe.patch, sample.key)
    references = _references(sample, recipe)
    grids = [latent_grid(reference, recipe.patch, sample.key) for reference in references]
    coords = layout(grid, grids, sample.fps, recipe, sample.key)
    clean = patchify(sample.latents.float(), recipe.patch)
    noise = patchify(draw.noise, recipe.patch)
    kept = first_frame_tokens(grid, recipe.patch) if draw.first_frame else 0
    parts = [clean[:kept], flow.add_noise(clean[kept:], noise[kept:], draw.sigma)]
    tokens = torch.cat([*(patchify(reference.float(), recipe.patch) for reference in references), *parts])
    target = flow.velocity(clean[kept:], noise[kept:])
    return Conditioned(tokens, coords, len(tokens) - len(target), target, flow.timestep(draw.sigma))


def _references(sample: Sample, recipe: Recipe) -> tuple[Tensor, ...]:
    if recipe.mode == "none":
        return ()
    if not sample.references:
        raise InputError(
            f"sample {sample.key!r} has no reference latents, which conditioning.mode {recipe.mode!r} needs;"
            " encode the data set with references or set conditioning.mode to 'none'"
        )
    for reference in sample.references:
        if reference.shape[0] != sample.latents.shape[0]:
            raise InputError(
                f"sample {sample.key!r}: reference latents have {reference.shape[0]} channels,"
                f" the target's have {sample.latents.shape[0]}; encode both with the same VAE"
            )
    return sample.references
