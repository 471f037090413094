"""The transformer to train: found, built cut over the ranks, and filled from its files."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import diffusers
import torch

from dist_trainer.checkpoints.checkpoint import MASTER, Checkpoint
from dist_trainer.model.engine import fill, sharded_construction
from dist_trainer.model.family import FAMILIES, read_config
from dist_trainer.model.start import SETTING, Start
from dist_trainer.model.start_weights import checkpoint_of
from dist_trainer.model.weights import Stored, opened, stored_tensors
from dist_trainer.watch import progress
from shards.errors import InputError
from shards.source import part


def load_transformer(
    source: str, dtype: torch.dtype, ds_config: dict[str, Any], rank: int, start: Start | None = None
) -> Any:
    """The transformer of `source` with its packed forward installed, in `dtype`.

    Its weights are those of `start`, a whole model, where it is given. Under ZeRO-3 each rank reads only the elements
    it will keep from the memory-mapped files, so no process ever holds the whole model. Raises InputError for a folder
    that is not such a model or whose weights do not fit.
    """
    config = read_config(source)
    with sharded_construction(ds_config):
        model = getattr(diffusers, config["_class_name"]).from_config(config)
    if ds_config["zero_optimization"]["stage"] < 3:
        torch.nn.Module.to(model, dtype)
    if start and start.is_checkpoint:
        _fill_from(model, checkpoint_of(start), rank)
    else:
        _fill(model, stored_of(source, start), rank, SETTING if start else "model.model_source")
    FAMILIES[config["_class_name"]].install(model)
    return model


def stored_of(source: str, start: Start | None) -> dict[str, Stored]:
    """Where the weights lie that a model begins with: in the files of `start`, a whole model, or else of its base."""
    return stored_tensors(start.path, SETTING) if start else stored_tensors(part(source, "transformer"))


def _fill(model: torch.nn.Module, stored: dict[str, Stored], rank: int, setting: str) -> None:
    parameters = dict(model.named_parameters())
    _check_names(parameters, stored, setting)
    for path in sorted({place.file for place in stored.values()}):
        with opened(path, "pt", setting) as file:
            for name, place in stored.items():
                if place.file != path:
                    continue
                tensor = file.get_tensor(place.name)
                _check_shape(parameters[name], tuple(tensor.shape), name, f"{setting}: {path}")
                fill(parameters[name], partial(_elements, tensor.reshape(-1)), rank)
                progress.moved()


def _fill_from(model: torch.nn.Module, checkpoint: Checkpoint, rank: int) -> None:
    parameters = dict(model.named_parameters())
    _check_names(parameters, checkpoint.shapes, SETTING)
    for name, shape in checkpoint.shapes.items():
        _check_shape(parameters[name], shape, name, f"{SETTING}: {checkpoint.folder}")

        def read(start: int, stop: int, name: str = name) -> torch.Tensor:
            return checkpoint.read(name, start, stop, (MASTER,))[MASTER]

        fill(parameters[name], read, rank)
        progress.moved()


def _elements(flat: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    return flat[start:stop]


def _check_names(parameters: Mapping[str, Any], stored: Mapping[str, Any], setting: str) -> None:
    if stored.keys() != parameters.keys():
        missing = sorted(parameters.keys() - stored.keys())[:3]
        extra = sorted(stored.keys() - parameters.keys())[:3]
        raise InputError(f"{setting}: weights do not fit config.json: missing {missing}, unknown {extra}")


def _check_shape(parameter: Any, found: tuple[int, ...], name: str, place: str) -> None:
    shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
    if found != shape:
        raise InputError(f"{place}: {name} is {found}, config.json says {shape}")
