"""What is sampled is what diffusers' pipelines sample, from the same noise, on tiny float32 weights."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXImageToVideoPipeline, LTXPipeline
from torch import Tensor

from dist_trainer.feed.conditioning import Recipe, patchify
from dist_trainer.model.ltx.packed import install
from dist_trainer.tiny.model import CHANNELS, TEXT_WIDTH, tiny_transformer
from dist_trainer.validation.decode import decode
from dist_trainer.validation.denoise import Sampling, denoising
from dist_trainer.validation.prompts import Case
from shards.geometry import Grid, Patch, Scale

SCALE, PATCH = Scale(4, 16), Patch(1, 1)
GRID = Grid(3, 4, 6)
FRAMES, HEIGHT, WIDTH = SCALE.pixels(GRID)
STEPS, FPS = 4, 12.0
CPU = torch.device("cpu")
TOKENS = 16  # of a padded text


@pytest.fixture(scope="module")
def pipeline(model_folder: Path) -> LTXPipeline:
    loaded = LTXPipeline.from_pretrained(model_folder)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def case(first: bool = False, reference: Grid | None = None) -> Case:
    """Texts of different lengths, so that a negative prompt is no twin of the prompt."""
    return Case(
        text=drawn(1, 7, TEXT_WIDTH).bfloat16(),
        negative=drawn(2, 11, TEXT_WIDTH).bfloat16(),
        first=drawn(3, CHANNELS, 1, GRID.height, GRID.width).bfloat16() if first else None,
        reference=drawn(4, CHANNELS, *reference).bfloat16() if reference else None,
    )


def sampling(folder: Path, guidance: float) -> Sampling:
    scheduler = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return Sampling(STEPS, guidance, FPS, scheduler)


@torch.no_grad()
def sampled(of: Case, noise: Tensor, how: Sampling, recipe: Recipe) -> Tensor:
    """Latents from the packed forward of the tiny transformer."""
    model = tiny_transformer()
    install(model)
    making = denoising(of, noise, how, recipe, CPU, torch.float32, torch.Generator().manual_seed(0))
    inputs = next(making)
    for _ in range(how.steps - 1):
        inputs = making.send(model(*inputs))
    with pytest.raises(StopIteration) as end:
        making.send(model(*inputs))
    latents: Tensor = end.value.value
    return latents


def padded(text: Tensor) -> tuple[Tensor, Tensor]:
    """A text as the pipelines take it: [1,T,D] with junk behind its end, and its mask."""
    embeds = drawn(9, 1, TOKENS, TEXT_WIDTH)
    embeds[0, : len(text)] = text
    return embeds, (torch.arange(TOKENS) < len(text))[None]


def theirs(pipeline: Any, of: Case, latents: Tensor, guidance: float, output: str) -> Any:
    """What a pipeline of diffusers makes of packed latents [1,L,C]."""
    prompt, mask = padded(of.text)
    assert of.negative is not None
    negative, negative_mask = padded(of.negative)
    return pipeline(
        prompt_embeds=prompt,
        prompt_attention_mask=mask,
        negative_prompt_embeds=negative,
        negative_prompt_attention_mask=negative_mask,
        height=HEIGHT,
        width=WIDTH,
        num_frames=FRAMES,
        frame_rate=FPS,
        num_inference_steps=STEPS,
        guidance_scale=guidance,
        latents=latents,
        output_type=output,
    ).frames


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_text_to_video_is_that_of_ltx_pipeline(
    pipeline: LTXPipeline, model_folder: Path, guidance: float
) -> None:
    noise, of = drawn(5, CHANNELS, *GRID), case()
    ours = sampled(of, noise, sampling(model_folder, guidance), Recipe(SCALE, PATCH))
    packed = theirs(pipeline, of, patchify(noise, PATCH)[None], guidance, "latent")
    torch.testing.assert_close(patchify(ours, PATCH), packed[0], atol=1e-4, rtol=0)
    video = theirs(pipeline, of, patchify(noise, PATCH)[None], guidance, "pt")
    frames = torch.from_numpy(decode(pipeline.vae, ours, CPU, seed=0))
    pixels = (video[0] * 255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert (frames.int() - pixels.int()).abs().max() <= 1


@pytest.mark.parametrize("guidance", [1.0, 3.5])
def test_a_first_frame_is_continued_as_by_the_image_to_video_pipeline(
    pipeline: LTXPipeline, model_folder: Path, guidance: float
) -> None:
    noise, of = drawn(6, CHANNELS, *GRID), case(first=True)
    ours = sampled(of, noise, sampling(model_folder, guidance), Recipe(SCALE, PATCH))
    assert of.first is not None
    begun = torch.cat([of.first.float(), noise[:, 1:]], dim=1)
    from_image = LTXImageToVideoPipeline(**pipeline.components)
    from_image.set_progress_bar_config(disable=True)
    packed = theirs(from_image, of, patchify(begun, PATCH)[None], guidance, "latent")
    torch.testing.assert_close(patchify(ours, PATCH), packed[0], atol=1e-4, rtol=0)
    assert torch.equal(ours[:, :1], of.first.float())


@pytest.mark.parametrize(("first", "causal"), [(False, False), (True, True)])
def test_a_reference_is_followed_as_by_the_plain_transformer(
    model_folder: Path, first: bool, causal: bool
) -> None:
    """By hand: tokens joined, a timestep for each token, the target's coordinates for both, and the guided step."""
    noise, of, guidance = drawn(7, CHANNELS, *GRID), case(first, GRID), 2.5
    how = sampling(model_folder, guidance)
    recipe = Recipe(SCALE, PATCH, mode="reference_video", causal=causal)
    ours = sampled(of, noise, how, recipe)

    assert of.reference is not None
    assert of.negative is not None
    frame, row, column = torch.meshgrid(*(torch.arange(n).float() for n in GRID), indexing="ij")
    starts = (frame * 4 - 3).clamp(min=0) if causal else frame * 4
    coords = torch.stack([starts / FPS, row * 16, column * 16]).flatten(1).repeat(1, 2)[None]
    reference = of.reference.float().flatten(1).T
    target = noise.clone()
    kept = 0
    if of.first is not None:
        target[:, :1], kept = of.first, GRID.height * GRID.width
    tokens = target.flatten(1).T
    clean = len(reference) + kept
    model = tiny_transformer()
    with torch.no_grad():
        for sigma, following in _sigmas(how, tokens=len(tokens)):
            timestep = torch.full((1, 2 * len(tokens), 1), 1000 * sigma)
            timestep[:, :clean] = 0
            negative, wanted = (
                model(
                    torch.cat([reference, tokens])[None],
                    encoder_hidden_states=text,
                    timestep=timestep[..., 0],
                    encoder_attention_mask=mask,
                    video_coords=coords,
                    return_dict=False,
                )[0][0, clean:]
                for text, mask in map(padded, (of.negative, of.text))
            )
            velocity = negative + guidance * (wanted - negative)
            tokens = torch.cat([tokens[:kept], tokens[kept:] + (following - sigma) * velocity])
    torch.testing.assert_close(patchify(ours, PATCH), tokens, atol=1e-4, rtol=0)


def _sigmas(how: Sampling, tokens: int) -> list[tuple[float, float]]:
    """Noise level of each step and of the one after it: evenly spaced, shifted for `tokens`, ending at 0."""
    config = how.scheduler
    slope = (config["max_shift"] - config["base_shift"]) / (
        config["max_image_seq_len"] - config["base_image_seq_len"]
    )
    shift = torch.tensor(config["base_shift"] + slope * (tokens - config["base_image_seq_len"])).exp()
    even = torch.linspace(1, 1 / how.steps, how.steps, dtype=torch.float64)
    shifted = shift / (shift + 1 / even - 1)
    stretched = 1 - (1 - shifted) * (1 - config["shift_terminal"]) / (1 - shifted[-1])
    values = [*stretched.tolist(), 0.0]
    return list(itertools.pairwise(values))


def test_a_smaller_reference_is_spread_over_the_target(model_folder: Path) -> None:
    """Its tokens are fewer, the video's are not, and they matter."""
    noise, how = drawn(8, CHANNELS, *GRID), sampling(model_folder, 1.0)
    recipe = Recipe(SCALE, PATCH, mode="reference_video")
    small = sampled(case(reference=Grid(2, 2, 3)), noise, how, recipe)
    assert small.shape == noise.shape
    assert (small - sampled(case(), noise, how, Recipe(SCALE, PATCH))).abs().max() > 1e-3


def test_noise_that_a_scheduler_adds_is_the_videos_own(model_folder: Path) -> None:
    how = sampling(model_folder, 1.0)
    how = replace(how, scheduler={**how.scheduler, "stochastic_sampling": True})
    noise, of = drawn(5, CHANNELS, *GRID), case()
    first, second = (sampled(of, noise, how, Recipe(SCALE, PATCH)) for _ in range(2))
    assert torch.equal(first, second)
