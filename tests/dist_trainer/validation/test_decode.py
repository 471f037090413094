"""Latents become frames also where memory is too small for a whole video at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKLLTXVideo
from torch import Tensor

from dist_trainer.validation.decode import decode
from shards.prepare.encode.models import load_vae

TILE = 64  # pixels of a tile's side
GRID = (2, 4, 8)


class Scarce:
    """A device's memory that holds a tile's latents [1,C,F,H,W], but not a larger one's, while a decoder works."""

    def __init__(self, vae: AutoencoderKLLTXVideo, most: int) -> None:
        self._decoder, self.failed, self.most = vae.decoder.forward, 0, most
        vae.decoder.forward = self.forward  # type: ignore[method-assign]

    def forward(self, latents: Tensor, *more: Any, **options: Any) -> Tensor:
        if latents[0, 0].numel() > self.most:
            self.failed += 1
            raise torch.OutOfMemoryError("no memory is left")
        return self._decoder(latents, *more, **options)


@pytest.fixture
def vae(model_folder: Path) -> AutoencoderKLLTXVideo:
    loaded = load_vae(model_folder, torch.float32)
    loaded.tile_sample_min_height = loaded.tile_sample_min_width = TILE
    loaded.tile_sample_stride_height = loaded.tile_sample_stride_width = TILE // 2
    return loaded


def frames(vae: AutoencoderKLLTXVideo, seed: int = 0) -> np.ndarray:
    latents = torch.randn(8, *GRID, generator=torch.Generator().manual_seed(seed))
    return decode(vae, latents, torch.device("cpu"), seed=0).astype(int)


def test_a_video_too_large_for_the_memory_is_made_in_tiles(vae: AutoencoderKLLTXVideo) -> None:
    whole, other = frames(vae), frames(vae, seed=1)
    memory = Scarce(vae, most=GRID[0] * (TILE // vae.spatial_compression_ratio) ** 2)
    tiled = frames(vae)
    assert memory.failed == 1
    assert tiled.shape == whole.shape
    # Weights without training look further than a tile.
    assert np.abs(tiled - whole).mean() < 0.75 * np.abs(other - whole).mean()
    # It does not try in vain again.
    assert (frames(vae) == tiled).all()
    assert memory.failed == 1


def test_what_does_not_fit_in_tiles_either_is_an_error(vae: AutoencoderKLLTXVideo) -> None:
    Scarce(vae, most=0)
    with pytest.raises(torch.OutOfMemoryError):
        frames(vae)
