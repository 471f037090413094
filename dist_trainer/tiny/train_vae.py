"""Train the tiny model's VAE: python -m dist_trainer.tiny.train_vae FOLDER writes the pipeline, transformer untrained.

A plain loop on one CPU thread, seeded. Clips are drawn as they are needed, none twice.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKLLTXVideo, LTXPipeline
from torch import Tensor

from dist_trainer.tiny.domain import FRAMES, SIZE, scenes
from dist_trainer.tiny.model import tiny_scheduler, tiny_text_encoder, tiny_tokenizer
from dist_trainer.tiny.muon import Muon
from dist_trainer.tiny.trained import WORDS, new_transformer, new_vae
from shards.prepare.media.shapes import COLOURS, NEW_COLOURS, NEW_SHAPES, SHAPES, draw, edges

_COLOURS = (*COLOURS, *NEW_COLOURS)
_SHAPES = (*SHAPES, *NEW_SHAPES)
# Weight of a latent number's divergence from a standard normal, against a pixel's squared error.
_DIVERGENCE = 5e-5
# Weight of the squared error of colours alone: what is bright is learned long before what is red.
_COLOUR = 4.0
_WARMUP = 20
# Width, height, frames and clips of the batches, which take turns: mostly the domain's own size.
_BATCHES = (
    *[(SIZE, SIZE, FRAMES, 4)] * 6,
    (SIZE, SIZE, 1, 16),
    (64, 96, 17, 2),
)


def train(vae: AutoencoderKLLTXVideo, steps: int, learning_rate: float, seed: int) -> None:
    """Train in place, for squared error and a little divergence; prints a line now and then.

    The rate rises at first, and falls to zero over the second half.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    generator = torch.Generator().manual_seed(seed)
    optimizers = _optimizers(vae, learning_rate)
    schedules = [
        torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / _WARMUP, 2 * (steps - step) / steps, 1.0)
        )
        for optimizer in optimizers
    ]
    began, recent = time.monotonic(), []
    for step in range(steps):
        pixels = as_pixels(_clips(*_BATCHES[step % len(_BATCHES)], random))
        posterior = vae.encode(pixels).latent_dist
        latents = posterior.mean + posterior.std * torch.randn(posterior.mean.shape, generator=generator)
        decoded = vae.decode(latents).sample
        error = F.mse_loss(decoded, pixels)
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        colour = F.mse_loss(_without_grey(decoded), _without_grey(pixels))
        (error + _COLOUR * colour + _DIVERGENCE * divergence).backward()
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        vae.zero_grad()
        recent.append(error.item())
        if (step + 1) % 20 == 0:
            spent = time.monotonic() - began
            print(
                f"step {step + 1}: PSNR {_decibel(float(np.mean(recent))):.1f} dB, {spent:.0f} s", flush=True
            )
            recent.clear()


def _optimizers(vae: AutoencoderKLLTXVideo, learning_rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the convolutions, which learn about twice as fast by it as by AdamW, and AdamW for the rest."""
    weights = [parameter for parameter in vae.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in vae.parameters() if parameter.ndim == 1]
    return [Muon(weights, learning_rate), torch.optim.AdamW(others, lr=learning_rate / 10, betas=(0.9, 0.99))]


@torch.no_grad()
def set_statistics(vae: AutoencoderKLLTXVideo, seed: int) -> None:
    """Measure `latents_mean` and `latents_std` on clips of the domain, so that latents are about standard normal."""
    clips = [draw(scene) for scene in scenes(192, seed, pictures=0)]
    latents = torch.cat(
        [vae.encode(as_pixels(clips[begin : begin + 16])).latent_dist.mean for begin in range(0, 192, 16)]
    )
    channels = latents.transpose(0, 1).flatten(1)
    vae.latents_mean.copy_(channels.mean(dim=1))
    vae.latents_std.copy_(channels.std(dim=1))


@torch.no_grad()
def psnr(vae: AutoencoderKLLTXVideo, clips: Sequence[np.ndarray]) -> float:
    """Peak signal to noise ratio in dB of clips, each uint8 [F,H,W,3], after the VAE: the mean over clips."""
    found = []
    for clip in clips:
        pixels = as_pixels([clip]).to(vae.dtype)
        decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample
        found.append(_decibel(F.mse_loss(decoded.float().clamp(-1, 1), pixels.float()).item()))
    return float(np.mean(found))


def as_pixels(clips: Sequence[np.ndarray]) -> Tensor:
    """Clips uint8 [F,H,W,3] of one size as the VAE takes them: float32 [B,3,F,H,W] in [-1,1]."""
    return torch.from_numpy(np.stack(clips)).permute(0, 4, 1, 2, 3) / 127.5 - 1


def report(vae: AutoencoderKLLTXVideo) -> None:
    """Print how well clips are reconstructed that were never trained."""
    known = scenes(48, 2**31, pictures=0)
    new = scenes(24, 2**31 + 1, tuple(NEW_COLOURS), NEW_SHAPES, pictures=0)
    print(f"unseen clips: {psnr(vae, [draw(scene) for scene in known]):.1f} dB")
    print(f"orange stars: {psnr(vae, [draw(scene) for scene in new]):.1f} dB")
    print(f"edges: {psnr(vae, [edges(draw(scene)) for scene in known]):.1f} dB")


def _without_grey(pixels: Tensor) -> Tensor:
    """How far each channel of [B,3,F,H,W] is from the three's mean."""
    return pixels - pixels.mean(dim=1, keepdim=True)


def _clips(width: int, height: int, frames: int, count: int, random: np.random.Generator) -> list[np.ndarray]:
    """Drawn clips; one in eight shows edges."""
    drawn = []
    for scene in scenes(count, int(random.integers(2**31)), _COLOURS, _SHAPES, pictures=0):
        clip = draw(scene._replace(width=width, height=height, frames=frames))
        drawn.append(edges(clip) if random.random() < 0.125 else clip)
    return drawn


def _decibel(squared_error: float) -> float:
    """Of numbers in [-1,1]."""
    return 10 * math.log10(4 / squared_error)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, measure, and write the pipeline's folder, its VAE in bfloat16."""
    parser = argparse.ArgumentParser(prog="dist_trainer.tiny.train_vae", description=__doc__)
    parser.add_argument("folder", type=Path, help="where the pipeline goes")
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--learning-rate", type=float, default=0.03)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_args(arguments)
    torch.set_num_threads(1)
    vae = new_vae(parsed.seed)
    train(vae, parsed.steps, parsed.learning_rate, parsed.seed)
    vae.eval().to(torch.bfloat16).float()  # what is measured is what is stored
    set_statistics(vae, parsed.seed)
    report(vae)
    tokenizer = tiny_tokenizer(WORDS)
    pipeline = LTXPipeline(
        scheduler=tiny_scheduler(),
        vae=vae.to(torch.bfloat16),
        text_encoder=tiny_text_encoder(len(tokenizer), parsed.seed),
        tokenizer=tokenizer,
        transformer=new_transformer(parsed.seed),
    )
    pipeline.save_pretrained(parsed.folder)


if __name__ == "__main__":
    main()
