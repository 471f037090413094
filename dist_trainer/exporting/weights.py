"""A model's weights for export: shapes by name, and whole tensors one at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_trainer.checkpoints.checkpoint import MASTER, Checkpoint
from dist_trainer.model.weights import Stored, opened, shapes_of
from dist_trainer.watch import progress
from shards.errors import InputError


@dataclass(frozen=True)
class Weights:
    """Shape of each parameter by its name in diffusers' model, and `read`, which gives one whole tensor."""

    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], torch.Tensor]


def trained(checkpoint: Checkpoint, kind: str = MASTER) -> Weights:
    """What a checkpoint holds, float32: the master weights, or another `kind` of its slices that has their shapes."""

    def read(name: str) -> torch.Tensor:
        progress.moved()
        shape = checkpoint.shapes[name]
        return checkpoint.read(name, 0, math.prod(shape), (kind,))[kind].reshape(shape)

    return Weights(checkpoint.shapes, read)


def stored(places: Mapping[str, Stored], stack: ExitStack) -> Weights:
    """What files hold (`dist_trainer.model.weights.stored_tensors`), in their own dtypes; open until `stack` ends."""
    files: dict[Path, Any] = {}

    def read(name: str) -> torch.Tensor:
        progress.moved()
        place = places[name]
        if place.file not in files:
            files[place.file] = stack.enter_context(opened(place.file, "pt"))
        tensor: torch.Tensor = files[place.file].get_tensor(place.name)
        return tensor

    return Weights(shapes_of(places), read)


def heeding(weights: Weights, heed: Callable[[], None]) -> Weights:
    """The same weights; `heed` is called before each tensor is read, and may raise."""

    def read(name: str) -> torch.Tensor:
        heed()
        return weights.read(name)

    return Weights(weights.shapes, read)


def merged(base: Weights, adapter: Weights, scale: float) -> Weights:
    """A base model with an adapter in its weights, float32: `base + scale * B @ A` where the adapter has a module.

    `adapter`: as `trained` gives it of a LoRA's checkpoint. Holds one module at a time. Raises InputError where the
    base lacks a module of the adapter's.
    """
    downs = {f"{name.split('.lora_A.')[0]}.weight": name for name in adapter.shapes if ".lora_A." in name}
    if lacking := sorted(downs.keys() - base.shapes.keys()):
        raise InputError(
            f"--merge: the LoRA's base has no {lacking[0]}, which the LoRA changes; is it still the model that the run "
            "was trained on?"
        )

    def read(name: str) -> torch.Tensor:
        weight = base.read(name).float()
        if name not in downs:
            return weight
        down, up = adapter.read(downs[name]), adapter.read(downs[name].replace(".lora_A.", ".lora_B."))
        return weight + scale * (up @ down)

    return Weights(base.shapes, read)
