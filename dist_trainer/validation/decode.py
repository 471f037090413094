"""From latents to frames, as LTXPipeline does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTXVideo

T = TypeVar("T")


def decode(vae: AutoencoderKLLTXVideo, latents: Tensor, device: torch.device, seed: int) -> np.ndarray:
    """Frames uint8 [F,H,W,3] of normalised latents [C,F,H,W]. The VAE is on `device` for this time only.

    `seed` is of the noise that some VAEs add inside; the process's own random state stays as it was.
    """
    vae.to(device)
    try:
        mean, spread = (x.float().to(device).view(-1, 1, 1, 1) for x in (vae.latents_mean, vae.latents_std))
        plain = latents.float().to(device) * spread / vae.config.scaling_factor + mean
        clean = plain.to(vae.dtype)[None]
        # A VAE that is told a timestep takes latents without noise for timestep 0.
        timestep = (
            torch.zeros(1, device=device, dtype=vae.dtype) if vae.config.timestep_conditioning else None
        )
        with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            video = with_room(vae, lambda: vae.decode(clean, timestep, return_dict=False)[0])[0]
        pixels = (video.float() / 2 + 0.5).clamp(0, 1) * 255
        return pixels.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()
    finally:
        vae.to("cpu")
        if device.type == "cuda":
            torch.cuda.empty_cache()


def with_room(vae: AutoencoderKLLTXVideo, work: Callable[[], T]) -> T:
    """What `work` makes with a VAE; where memory is too small, in tiles, which differ a little at their seams."""
    try:
        return work()
    except torch.OutOfMemoryError:
        pass  # what was made so far is let go of with the error
    torch.cuda.empty_cache()
    vae.enable_tiling()
    vae.use_framewise_decoding = vae.use_framewise_encoding = True
    return work()
