"""Latents to frames as diffusers decodes them, and references beside their target."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTXVideo
    from torch import Tensor


@torch.inference_mode()
def decode_latents(
    vae: AutoencoderKLLTXVideo,
    latents: Tensor,
    generator: torch.Generator,
    timestep: float = 0.0,
    noise_scale: float | None = None,
) -> np.ndarray:
    """Frames uint8 [F,H,W,3] of normalised latents [C,F,H,W], as `LTXPipeline` decodes.

    `latents * latents_std / scaling_factor + latents_mean` in float32, mixed with noise of `generator` (on the
    CPU) where the VAE takes a timestep.
    """
    z = latents.float().to(vae.device)[None]
    centre = vae.latents_mean.float().to(vae.device).view(1, -1, 1, 1, 1)
    spread = vae.latents_std.float().to(vae.device).view(1, -1, 1, 1, 1)
    z = z * spread / vae.config.scaling_factor + centre
    time = None
    if vae.config.timestep_conditioning:
        scale = timestep if noise_scale is None else noise_scale
        noise = torch.randn(z.shape, generator=generator).to(vae.device)
        z = (1 - scale) * z + scale * noise
        time = torch.tensor([timestep], device=vae.device, dtype=vae.dtype)
    video = vae.decode(z.to(vae.dtype), time, return_dict=False)[0][0]
    pixels = (video.float() / 2 + 0.5).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def side_by_side(clips: Sequence[np.ndarray]) -> np.ndarray:
    """References and, last, the target, uint8 [F,H,W,3] each, in one picture: as high and as long as the target.

    Of a reference at a lower rate each frame stays as long as it has to.
    """
    frames, height = clips[-1].shape[:2]
    parts = []
    for clip in clips[:-1]:
        width = max(2, 2 * round(clip.shape[2] * height / clip.shape[1] / 2))
        if clip.shape[1:3] != (height, width):
            clip = np.stack([_resized(frame, width, height) for frame in clip])
        parts.append(clip[np.arange(frames) * len(clip) // frames])
    return np.concatenate([*parts, clips[-1]], axis=2)


def _resized(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))
