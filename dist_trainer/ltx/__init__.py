"""The LTX-Video family: what its config says, its packed forward, and its names for export."""

from __future__ import annotations

from dist_trainer.ltx.packed import install
from dist_trainer.ltx.shape import shape

VAE = "AutoencoderKLLTXVideo"

__all__ = ["VAE", "install", "shape"]
