"""What a transformer takes, whatever its family. Imports without torch."""

from __future__ import annotations

from typing import NamedTuple

from shards.geometry import Patch


class Shape(NamedTuple):
    """Latent channels, text embedding width, patch, and attention's share of a sample's cost."""

    channels: int
    text_width: int
    patch: Patch
    quadratic: float
