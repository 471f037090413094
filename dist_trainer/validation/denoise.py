"""From noise to the latents of a sample video: the packed forward, conditions and coordinates of training.

Timesteps and steps are those of LTXPipeline; a clean first frame and references stay as they are, as in training.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dist_trainer.feed.conditioning import Recipe, build, latent_grid, unpatchify
from dist_trainer.feed.flow import Draw
from dist_trainer.model.attention import Lengths
from dist_trainer.validation.prompts import Case
from shards.formats.sample import Sample

Inputs = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Lengths, Lengths]


@dataclass(frozen=True)
class Sampling:
    """How to sample: denoising steps, strength of guidance (1: none), frames per second, the scheduler's config."""

    steps: int
    guidance: float
    fps: float
    scheduler: Mapping[str, Any]


def denoising(
    case: Case,
    noise: Tensor,
    sampling: Sampling,
    recipe: Recipe,
    device: torch.device,
    dtype: torch.dtype,
    drawn: torch.Generator,
) -> Generator[Inputs, Tensor, Tensor]:
    """Yield the model's inputs of each step, take its prediction [N,Cin], and return latents float32 [C,F,H,W].

    `noise` float32 [C,F,H,W]. With guidance above 1 a step's pack holds two samples: one with the negative prompt, one
    with the prompt. The latents are on `device`. A scheduler that adds noise at each step takes it from `drawn`.
    """
    grid = latent_grid(noise, recipe.patch, "noise")
    known = torch.zeros_like(noise)
    if case.first is not None:
        known[:, :1] = case.first
    references = () if case.reference is None else (case.reference,)
    sample = Sample("sample video", 0, known, case.text, references, sampling.fps)
    made = build(sample, Draw(1.0, noise, case.first is not None), recipe)
    texts = [case.text]
    if sampling.guidance > 1 and case.negative is not None:
        texts.insert(0, case.negative)
    copies, length = len(texts), len(made.tokens)
    text = torch.cat(texts).to(device, dtype)
    index = (torch.arange(length) >= made.clean).long().repeat(copies).to(device)
    coords = made.coords.repeat(1, copies).to(device)
    lengths = Lengths.of([length] * copies).to(device)
    text_lengths = Lengths.of([len(one) for one in texts]).to(device)
    tokens = made.tokens.to(device)
    scheduler, times = _schedule(sampling, grid.frames * grid.height * grid.width, device)
    for time in times:
        timesteps = torch.stack([torch.zeros_like(time), time])
        inputs = tokens.repeat(copies, 1).to(dtype), text, timesteps, index, coords, lengths, text_lengths
        prediction = yield inputs
        velocity = prediction.float().unflatten(0, (copies, length))[:, made.clean :]
        wanted = velocity[-1]
        if copies > 1:
            wanted = velocity[0] + sampling.guidance * (velocity[1] - velocity[0])
        moved = scheduler.step(wanted, time, tokens[made.clean :], generator=drawn, return_dict=False)[0]
        tokens = torch.cat([tokens[: made.clean], moved])
    return unpatchify(tokens[-grid.tokens(recipe.patch) :], grid, recipe.patch)


def _schedule(sampling: Sampling, tokens: int, device: torch.device) -> tuple[Any, Tensor]:
    """A scheduler of this video's own, and its timesteps float32 [steps], as LTXPipeline sets them."""
    from diffusers import FlowMatchEulerDiscreteScheduler  # takes seconds, and a run may make no videos
    from diffusers.pipelines.ltx.pipeline_ltx import calculate_shift, retrieve_timesteps

    scheduler = FlowMatchEulerDiscreteScheduler.from_config(dict(sampling.scheduler))
    config = scheduler.config
    mu = calculate_shift(
        tokens, config.base_image_seq_len, config.max_image_seq_len, config.base_shift, config.max_shift
    )
    sigmas = np.linspace(1.0, 1 / sampling.steps, sampling.steps)
    times, _ = retrieve_timesteps(scheduler, sampling.steps, device, sigmas=sigmas, mu=mu)
    return scheduler, times
