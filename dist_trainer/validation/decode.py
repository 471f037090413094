"""From latents to frames where memory may be scarce."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch
from torch import Tensor

from shards.prepare.decode.pictures import decode_latents

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTXVideo

T = TypeVar("T")


def decode(vae: AutoencoderKLLTXVideo, latents: Tensor, device: torch.device, seed: int) -> np.ndarray:
    """Frames uint8 [F,H,W,3] of normalised latents [C,F,H,W]. The VAE is on `device` for this time only.

    `seed` is of the noise that some VAEs add inside; the process's own random state stays as it was.
    """
    vae.to(device)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            generator = torch.manual_seed(seed)
            return with_room(vae, lambda: decode_latents(vae, latents, generator))
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
