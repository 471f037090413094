"""Floating-point operations by a sample's size, whatever the model family. Imports without torch."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Flops:
    """FLOPs by sample: `token` * L + `text` * T + `pair` * L^2 + `cross` * L * T."""

    token: float
    text: float
    pair: float
    cross: float

    def __call__(self, tokens: np.ndarray, text_tokens: np.ndarray) -> np.ndarray:
        """FLOPs float64 [B] of samples of `tokens` int64 [B], reference tokens counted, and `text_tokens` [B]."""
        length, text = tokens.astype(np.float64), text_tokens.astype(np.float64)
        return self.token * length + self.text * text + self.pair * length**2 + self.cross * length * text
