"""Whether the next checkpoints have room: what one will weigh, and what is free."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.config import RunConfig
from dist_trainer.model.family import read_config
from dist_trainer.rundir import RunFolder

_FLOAT = 4  # bytes
_COPIES = {"sgd": 1}  # of each trained weight in a checkpoint; the others keep AdamW's two moments beside it


def room(config: RunConfig) -> dict[str, Any]:
    """Bytes of one checkpoint, of all that are still to come beside those there are, and free in the run's folder.

    Raises InputError for a model that cannot be found or trained so.
    """
    folder = RunFolder(Path(config.output_dir))
    one = checkpoint_bytes(config)
    there = len(complete_steps(folder.checkpoints))
    settings, steps = config.checkpoints, config.optimization.steps
    total = steps // settings.interval + 1 if settings.interval else 1
    if settings.keep_last_n > 0:
        # One more than is kept: the oldest goes when the newest is complete.
        total = min(total, settings.keep_last_n + 1)
    place = next(path for path in (folder.root, *folder.root.resolve().parents) if path.is_dir())
    return {"one": one, "all": one * max(1, total - there), "free": shutil.disk_usage(place).free}


def checkpoint_bytes(config: RunConfig) -> int:
    """Bytes of a checkpoint: float32 copies of what is trained, of its running mean and of its optimizer state."""
    copies = _COPIES.get(config.optimization.optimizer_type, 3)
    averaged = config.optimization.ema_decay is not None
    return trained_elements(config) * _FLOAT * (copies + averaged)


def trained_elements(config: RunConfig) -> int:
    """Elements of all trained parameters, counted on a model without memory."""
    # Heavy, and rank 0 alone asks: the others start without them.
    import diffusers
    import torch

    from dist_trainer.model.lora import add_adapter

    described = read_config(config.model.model_source)
    with torch.device("meta"):
        model = getattr(diffusers, described["_class_name"]).from_config(described)
        if config.model.training_mode == "lora" and config.lora:
            lora = config.lora
            add_adapter(model, lora.rank, lora.alpha, lora.dropout, lora.target_modules, config.seed)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
