"""The transformer to train: found, built cut over the ranks, and filled from its files."""

from __future__ import annotations

from typing import Any

import diffusers
import torch

from dist_trainer.model.engine import fill, sharded_construction
from dist_trainer.model.family import FAMILIES, read_config
from dist_trainer.model.weights import Stored, opened, stored_tensors
from dist_trainer.watch import progress
from shards.errors import InputError
from shards.source import part


def load_transformer(source: str, dtype: torch.dtype, ds_config: dict[str, Any], rank: int) -> Any:
    """The transformer of `source` with its packed forward installed, in `dtype`.

    Under ZeRO-3 each rank reads only the elements it will keep from the memory-mapped files, so no process ever
    holds the whole model. Raises InputError for a folder that is not such a model or whose weights do not fit.
    """
    config = read_config(source)
    with sharded_construction(ds_config):
        model = getattr(diffusers, config["_class_name"]).from_config(config)
    if ds_config["zero_optimization"]["stage"] < 3:
        torch.nn.Module.to(model, dtype)
    _fill(model, stored_tensors(part(source, "transformer")), rank)
    FAMILIES[config["_class_name"]].install(model)
    return model


def _fill(model: torch.nn.Module, stored: dict[str, Stored], rank: int) -> None:
    parameters = dict(model.named_parameters())
    if stored.keys() != parameters.keys():
        missing = sorted(parameters.keys() - stored.keys())[:3]
        extra = sorted(stored.keys() - parameters.keys())[:3]
        raise InputError(
            f"model.model_source: weights do not fit config.json: missing {missing}, unknown {extra}"
        )
    for path in sorted({place.file for place in stored.values()}):
        with opened(path, "pt") as file:
            for name, place in stored.items():
                if place.file != path:
                    continue
                tensor, parameter = file.get_tensor(place.name), parameters[name]
                shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
                if tuple(tensor.shape) != shape:
                    found = tuple(tensor.shape)
                    raise InputError(
                        f"model.model_source: {path}: {name} is {found}, config.json says {shape}"
                    )
                fill(parameter, tensor, rank)
                progress.moved()
