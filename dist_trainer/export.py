"""Export: a checkpoint's weights as files that diffusers opens. Needs neither ranks nor a GPU.

exports/step_000500/pytorch_lora_weights.safetensors            LoRA and IC-LoRA: LTXPipeline.load_lora_weights
exports/step_000500/transformer/{config.json, *.safetensors}    full: LTXVideoTransformer3DModel.from_pretrained
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from dist_trainer.checkpoints.checkpoint import MASTER, Checkpoint, newest, open_checkpoint
from dist_trainer.config import RunConfig, load
from dist_trainer.model.family import WEIGHTS, read_config
from dist_trainer.model.lora import adapter_config, adapter_state, lora_config
from dist_trainer.model.ltx.keys import lora_file
from dist_trainer.rundir import RunFolder, write_text
from dist_trainer.watch import progress
from shards.errors import InputError

_FILE_BYTES = 5 * 10**9


def export(root: Path, steps: int | None = None, dtype: torch.dtype | None = None) -> Path:
    """Export the run in `root` at the checkpoint of `steps` (None: the newest). Returns the folder written.

    `dtype`: of a full model's weights; by default what the run computed in. Raises InputError when `root` holds no
    run or no complete checkpoint.
    """
    run = RunFolder(root)
    if not run.config.is_file():
        raise InputError(f"{root}: no config.yaml; name a run's output folder")
    config = load(run.config)
    checkpoint = open_checkpoint(run.checkpoints, steps) if steps is not None else newest(run.checkpoints)
    if checkpoint is None:
        raise InputError(f"{run.checkpoints}: no complete checkpoint yet")
    final = run.exports / checkpoint.folder.name
    temporary = run.exports / f".{final.name}.{os.getpid()}.tmp"
    # Process ids come back: a container's first process is number 1 every time.
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        if config.model.training_mode == "lora":
            _write_lora(temporary, checkpoint, config)
        else:
            default = torch.bfloat16 if config.acceleration.precision == "bf16" else torch.float32
            _write_full(temporary / "transformer", checkpoint, config, dtype or default)
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _weights(checkpoint: Checkpoint) -> Iterator[tuple[str, torch.Tensor]]:
    """Name and whole float32 weights of each trained parameter, one at a time."""
    for name in checkpoint.shapes:
        yield name, _whole(checkpoint, name)


def _whole(checkpoint: Checkpoint, name: str) -> torch.Tensor:
    progress.moved()
    shape = checkpoint.shapes[name]
    return checkpoint.read(name, 0, math.prod(shape), (MASTER,))[MASTER].reshape(shape)


def _write_lora(folder: Path, checkpoint: Checkpoint, config: RunConfig) -> None:
    assert config.lora is not None, "the config's rules require a lora block in lora mode"
    lora = config.lora
    settings = adapter_config(lora_config(lora.rank, lora.alpha, lora.dropout, lora.target_modules))
    metadata = {
        "base_model": config.model.model_source,
        "training_mode": "ic_lora" if config.conditioning.mode == "reference_video" else "lora",
        "step": str(checkpoint.step),
    }
    tensors = adapter_state(dict(_weights(checkpoint)))
    lora_file(folder / "pytorch_lora_weights.safetensors", tensors, settings, metadata)


def _write_full(folder: Path, checkpoint: Checkpoint, config: RunConfig, dtype: torch.dtype) -> None:
    """A transformer folder, one file of weights in memory at a time."""
    folder.mkdir()
    model_config = read_config(config.model.model_source)
    write_text(folder / "config.json", json.dumps(model_config, indent=2) + "\n")
    files = _split(checkpoint.shapes, dtype.itemsize)
    weight_map = {}
    for number, names in enumerate(files, start=1):
        name = (
            WEIGHTS
            if len(files) == 1
            else WEIGHTS.replace(".safe", f"-{number:05d}-of-{len(files):05d}.safe")
        )
        whole = {key: _whole(checkpoint, key).to(dtype) for key in names}
        save_file(whole, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(names, name))
    if len(files) > 1:
        total = dtype.itemsize * sum(math.prod(shape) for shape in checkpoint.shapes.values())
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        write_text(folder / f"{WEIGHTS}.index.json", json.dumps(index, indent=2) + "\n")


def _split(shapes: dict[str, tuple[int, ...]], itemsize: int) -> list[list[str]]:
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
