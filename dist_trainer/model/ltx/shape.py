"""What a transformer's config.json says of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dist_trainer.model.shape import Shape
from shards.geometry import Patch


def shape(config: Mapping[str, Any]) -> Shape:
    """The Shape of an LTXVideoTransformer3DModel's config.

    A layer of width d spends 14 d^2 multiply-adds per token in its linear maps (self-attention 4, cross-
    attention 2, feed-forward 8) and 2 L d in self-attention over L tokens: a sample costs L + L^2 / (7 d) of
    the linear cost.
    """
    patch = Patch(int(config["patch_size_t"]), int(config["patch_size"]))
    width = int(config["num_attention_heads"]) * int(config["attention_head_dim"])
    channels = int(config["in_channels"]) // (patch.temporal * patch.spatial**2)
    return Shape(channels, int(config["caption_channels"]), patch, 1.0 / (7 * width))
