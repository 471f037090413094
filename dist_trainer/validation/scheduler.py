"""The scheduler of a model, which takes sample videos from noise to latents. Imports without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shards.errors import InputError

_FILE = "scheduler_config.json"
_CLASS = "FlowMatchEulerDiscreteScheduler"  # that of LTXPipeline; another one takes another loop


def read_scheduler(folder: Path) -> dict[str, Any]:
    """The config in a model's folder scheduler/. Raises InputError where it is not one that sample videos can take."""
    path = folder / _FILE
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"model.model_source: {path}: not a scheduler's config: {error}") from error
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name != _CLASS:
        raise InputError(
            f"model.model_source: {path}: _class_name {name!r} is not {_CLASS}, which sample videos need; give a model "
            "folder as LTXPipeline has it, or set validation.interval to null"
        )
    return config
