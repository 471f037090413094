"""LTX-Video pipelines small enough for a CPU: of random weights for tests, and trained on moving shapes."""

from __future__ import annotations

from dist_trainer.tiny.model import CHANNELS, TEXT_WIDTH, write_tiny_model

__all__ = ["CHANNELS", "TEXT_WIDTH", "write_tiny_model"]
