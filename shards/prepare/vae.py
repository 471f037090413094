"""Clips to normalised latents."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from shards.geometry import Scale

if TYPE_CHECKING:
    import numpy as np
    from diffusers import AutoencoderKLLTXVideo
    from torch import Tensor


def vae_scale(vae: AutoencoderKLLTXVideo) -> Scale:
    """Compression ratios of a VAE, as its config gives them."""
    return Scale(int(vae.temporal_compression_ratio), int(vae.spatial_compression_ratio))


@torch.inference_mode()
def encode_clip(vae: AutoencoderKLLTXVideo, frames: np.ndarray, generator: torch.Generator) -> Tensor:
    """Normalised latents [C,F,H,W], bfloat16 on the CPU, of a clip uint8 [frames,height,width,3].

    A sample of the posterior, then `(z - latents_mean) * scaling_factor / latents_std` per channel, as
    `LTXPipeline._normalize_latents`. Only the network runs in the VAE's dtype; sample and normalisation are
    float32. `generator` must be on the CPU: the noise is then the same on every kind of device.
    """
    pixels = torch.from_numpy(frames).to(vae.device).permute(3, 0, 1, 2)[None]
    posterior = vae.encode((pixels.float() / 127.5 - 1).to(vae.dtype)).latent_dist
    mean, logvar = posterior.mean.float().cpu(), posterior.logvar.float().cpu()
    noise = torch.randn(mean.shape, generator=generator)
    z = mean + torch.exp(0.5 * logvar) * noise
    centre = vae.latents_mean.float().cpu().view(1, -1, 1, 1, 1)
    spread = vae.latents_std.float().cpu().view(1, -1, 1, 1, 1)
    return ((z - centre) * vae.config.scaling_factor / spread)[0].to(torch.bfloat16)
