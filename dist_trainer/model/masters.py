"""Master weights that are exact: DeepSpeed makes them from what the model computes with, which may be rounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from dist_trainer.checkpoints.checkpoint import MASTER
from dist_trainer.model.engine import Engine, Slice
from dist_trainer.model.lora import is_adapters
from dist_trainer.model.start import Start
from dist_trainer.model.start_weights import checkpoint_of
from dist_trainer.model.weights import Stored
from dist_trainer.watch import progress

Exact = Callable[[Slice], torch.Tensor]  # what a slice's weights are where they come from, flat


def set_masters(engine: Engine, exact: Exact, dtype: torch.dtype) -> None:
    """Set this rank's float32 master weights to what `exact` reads, where that is finer than `dtype`, the model's."""
    if dtype == torch.float32:
        return
    for piece, master in engine.masters().items():
        value = exact(piece)
        if value.dtype != dtype:
            master.copy_(value)
        progress.moved()


def of_adapter(model: Any) -> Exact:
    """What reads slices of the adapter as it is now, flat."""
    held = {name: parameter.data for name, parameter in model.named_parameters() if is_adapters(name)}
    return lambda piece: held[piece.name].reshape(-1)[piece.start : piece.stop]


def of_checkpoint(start: Start) -> Exact:
    """What reads slices of a checkpoint's weights, flat float32."""
    checkpoint = checkpoint_of(start)
    return lambda piece: checkpoint.read(piece.name, piece.start, piece.stop, (MASTER,))[MASTER]


def of_files(stored: Mapping[str, Stored]) -> Exact:
    """What reads slices of a whole model's files, flat, in their own dtype: only these elements, as they are mapped."""
    files: dict[Path, Any] = {}

    def read(piece: Slice) -> torch.Tensor:
        place = stored[piece.name]
        if place.file not in files:
            files[place.file] = safe_open(place.file, "pt")
        flat: torch.Tensor = files[place.file].get_tensor(place.name).reshape(-1)
        return flat[piece.start : piece.stop]

    return read
