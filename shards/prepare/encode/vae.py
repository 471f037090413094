"""Clips to normalised latents."""

from __future__ import annotations

from collections.abc import Sequence
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
def encode_clips(
    vae: AutoencoderKLLTXVideo, clips: Sequence[np.ndarray], generators: Sequence[torch.Generator]
) -> list[Tensor]:
    """Normalised latents [C,F,H,W], bfloat16 on the CPU, of clips uint8 [frames,height,width,3] of one size.

    A sample of the posterior, then `(z - latents_mean) * scaling_factor / latents_std` per channel, as
    `LTXPipeline._normalize_latents`. Only the network runs in the VAE's dtype; sample and normalisation are
    float32. There is a generator per clip, on the CPU: its noise is then the same on every kind of device and in
    every company. The network's last bits may depend on the company.
    """
    pixels = torch.stack([torch.from_numpy(clip).to(vae.device).permute(3, 0, 1, 2) for clip in clips])
    posterior = vae.encode((pixels.float() / 127.5 - 1).to(vae.dtype)).latent_dist
    mean, logvar = posterior.mean.float().cpu(), posterior.logvar.float().cpu()
    noise = torch.stack([torch.randn(mean.shape[1:], generator=generator) for generator in generators])
    z = mean + torch.exp(0.5 * logvar) * noise
    centre = vae.latents_mean.float().cpu().view(1, -1, 1, 1, 1)
    spread = vae.latents_std.float().cpu().view(1, -1, 1, 1, 1)
    return list(((z - centre) * vae.config.scaling_factor / spread).to(torch.bfloat16))
