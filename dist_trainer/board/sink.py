"""What every place for a run's figures takes. Rank 0 only."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import numpy as np

Setting = str | int | float | bool


class Sink(Protocol):
    """Takes what a run shows; names are those of TensorBoard, `train/loss`."""

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Points of curves, of a step."""

    def text(self, name: str, markdown: str) -> None:
        """A text about the whole run."""

    def lengths(self, name: str, values: np.ndarray) -> None:
        """How numbers int64 [N] are distributed."""

    def video(self, name: str, gif: bytes, step: int) -> None:
        """A video, as an animated GIF."""

    def settings(self, settings: Mapping[str, Setting], judged_by: tuple[str, ...]) -> None:
        """What distinguishes the run from others, and the figures by which they are compared."""

    def close(self, failed: bool) -> None:
        """Nothing comes after; `failed`: the run ends by an error."""
