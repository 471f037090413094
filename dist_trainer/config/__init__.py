"""The run's configuration: schema, loading with file and line in every message, and notices at start.

Imports without torch, so that a login node can check a recipe.
"""

from __future__ import annotations

from dist_trainer.config.load import dump, load
from dist_trainer.config.notices import notices
from dist_trainer.config.run import RunConfig

__all__ = ["RunConfig", "dump", "load", "notices"]
