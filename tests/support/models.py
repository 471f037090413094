"""The tiny model folder that tests share, written once per process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from dist_trainer.tiny import write_tiny_model
from shards.dataset.info import Source

if TYPE_CHECKING:
    from diffusers import LTXVideoTransformer3DModel


@functools.cache
def tiny_model() -> Path:
    """Folder of the tiny LTX pipeline (seed 0). Read-only: a test that changes it copies it first."""
    folder = Path(tempfile.mkdtemp(prefix="tiny_model_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return write_tiny_model(folder)


@functools.cache
def tiny_source() -> Source:
    """What dataset.json says of the tiny model's VAE."""
    import torch

    from shards.prepare.encode.models import fingerprint, load_vae

    vae = load_vae(tiny_model(), torch.float32)
    return Source("tiny", fingerprint(vae), type(vae).__name__)


def small_transformer(layers: int = 2) -> LTXVideoTransformer3DModel:
    """An LTX transformer that takes latents of 6 channels and text of 20, its weights alike at every call."""
    import torch
    from diffusers import LTXVideoTransformer3DModel

    torch.manual_seed(0)
    return LTXVideoTransformer3DModel(
        in_channels=6,
        out_channels=6,
        num_attention_heads=2,
        attention_head_dim=16,  # inner width 32: rope pads 2 channels, as the published models' widths do
        cross_attention_dim=32,
        num_layers=layers,
        caption_channels=20,
    )
