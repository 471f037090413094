"""The LTX-Video family: what its config says, its packed forward, and its names for export."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dist_trainer.model.ltx import flops
from dist_trainer.model.ltx.shape import shape

VAE = "AutoencoderKLLTXVideo"

__all__ = ["VAE", "blocks", "flops", "install", "shape"]


def install(model: Any) -> None:
    """Put the packed forward onto a model, in place; see `dist_trainer.model.ltx.packed`."""
    from dist_trainer.model.ltx import packed  # torch comes with it; what a config says needs none

    packed.install(model)


def blocks(model: Any) -> Sequence[Any]:
    """The modules a model is a stack of, in the order in which they are called."""
    return tuple(model.transformer_blocks)
