"""The transformer to train: found, built cut over the ranks, and filled from its files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from diffusers.loaders.single_file_utils import convert_ltx_transformer_checkpoint_to_diffusers
from safetensors import SafetensorError, safe_open

from dist_trainer.engine import fill, sharded_construction
from dist_trainer.family import FAMILIES, WEIGHTS, read_config
from shards.errors import InputError
from shards.source import part


class _Stored(NamedTuple):
    """Where a tensor lies: its file and its name there."""

    file: Path
    name: str


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
    _fill(model, _stored_tensors(part(source, "transformer")), rank)
    FAMILIES[config["_class_name"]].install(model)
    return model


def _stored_tensors(place: Path) -> dict[str, _Stored]:
    """Parameter name -> where its tensor lies, for a folder in diffusers' layout or a file in the original one."""
    if place.is_file():
        with _opened(place) as stored:
            originals = {name: name for name in stored.keys()}  # noqa: SIM118 - safe_open is no mapping
        # The conversion only renames, so names can stand in for the tensors.
        renamed = convert_ltx_transformer_checkpoint_to_diffusers(originals)
        return {name: _Stored(place, original) for name, original in renamed.items()}
    index = place / f"{WEIGHTS}.index.json"
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: _Stored(place / file, name) for name, file in weight_map.items()}
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"model.model_source: {index}: not an index of weights: {error}") from error
    single = place / WEIGHTS
    if not single.is_file():
        raise InputError(f"model.model_source: {place}: no {WEIGHTS} (weights must be safetensors)")
    with _opened(single) as stored:
        return {name: _Stored(single, name) for name in stored.keys()}  # noqa: SIM118


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    try:
        with safe_open(path, "pt") as stored:
            yield stored
    except (OSError, SafetensorError) as error:
        raise InputError(f"model.model_source: {path}: damaged weights file: {error}") from error


def _fill(model: torch.nn.Module, stored: dict[str, _Stored], rank: int) -> None:
    parameters = dict(model.named_parameters())
    if stored.keys() != parameters.keys():
        missing = sorted(parameters.keys() - stored.keys())[:3]
        extra = sorted(stored.keys() - parameters.keys())[:3]
        raise InputError(
            f"model.model_source: weights do not fit config.json: missing {missing}, unknown {extra}"
        )
    for path in sorted({place.file for place in stored.values()}):
        if not path.is_file():
            raise InputError(f"model.model_source: {path}: weights file named by the index is missing")
        with _opened(path) as file:
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
