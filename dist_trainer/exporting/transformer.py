"""A whole transformer in files: a folder that diffusers opens, or the one file that ComfyUI opens."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dist_trainer.exporting.file import write_tensors
from dist_trainer.exporting.weights import Weights
from dist_trainer.model.family import WEIGHTS
from dist_trainer.model.ltx.keys import SINGLE_FILE_PREFIX
from dist_trainer.model.ltx.names import original_name
from dist_trainer.rundir import write_text

_FILE_BYTES = 5 * 10**9
# What ComfyUI builds the model from, by the names of diffusers' config.
_COMFYUI_CONFIG = (
    "in_channels",
    "out_channels",
    "num_attention_heads",
    "attention_head_dim",
    "cross_attention_dim",
    "caption_channels",
    "num_layers",
)


def write_folder(
    folder: Path,
    weights: Weights,
    config: Mapping[str, Any],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    """`folder/{config.json, *.safetensors}` for `LTXVideoTransformer3DModel.from_pretrained`, a tensor at a time.

    `config`: the model's config.json. `metadata`: for the header of each file.
    """
    folder.mkdir(parents=True)
    write_text(folder / "config.json", json.dumps(config, indent=2) + "\n")
    files = _split(weights.shapes, dtype.itemsize)
    weight_map: dict[str, str] = {}
    for number, names in enumerate(files, start=1):
        part = f"-{number:05d}-of-{len(files):05d}.safe"
        file = WEIGHTS if len(files) == 1 else WEIGHTS.replace(".safe", part)
        shapes = {name: weights.shapes[name] for name in names}
        write_tensors(folder / file, shapes, weights.read, dtype, {**metadata, "format": "pt"})
        weight_map.update(dict.fromkeys(names, file))
    if len(files) > 1:
        total = dtype.itemsize * sum(math.prod(shape) for shape in weights.shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(folder / f"{WEIGHTS}.index.json", json.dumps(index, indent=2) + "\n")


def write_single(
    path: Path,
    weights: Weights,
    config: Mapping[str, Any],
    causal: bool,
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    """One file with the names Lightricks publishes, for ComfyUI's loader of diffusion models, a tensor at a time.

    The header tells ComfyUI the model's sizes, and `causal`: the time coordinates the model was trained with.
    """
    names = {SINGLE_FILE_PREFIX + original_name(name): name for name in weights.shapes}
    shapes = {theirs: weights.shapes[ours] for theirs, ours in names.items()}
    sizes = {key: config[key] for key in _COMFYUI_CONFIG if key in config}
    described = {"transformer": sizes | {"causal_temporal_positioning": causal}}
    header = {**metadata, "format": "pt", "config": json.dumps(described)}
    write_tensors(path, shapes, lambda name: weights.read(names[name]), dtype, header)


def _split(shapes: Mapping[str, tuple[int, ...]], itemsize: int) -> list[list[str]]:
    """Parameter names in files of at most 5 GB, in the model's order."""
    files: list[list[str]] = [[]]
    size = 0
    for name, shape in shapes.items():
        nbytes = itemsize * math.prod(shape)
        if files[-1] and size + nbytes > _FILE_BYTES:
            files.append([])
            size = 0
        files[-1].append(name)
        size += nbytes
    return files
