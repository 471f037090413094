"""The tiny model folder that tests share, written once per process."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path

from dist_trainer.tiny import write_tiny_model
from shards.dataset.info import Source


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
