"""Export: a checkpoint's weights as files that diffusers and ComfyUI open.

exports/step_000500/pytorch_lora_weights.safetensors   LoRA and IC-LoRA: LTXPipeline.load_lora_weights
exports/step_000500/comfyui/RUN_step_000500.safetensors      the same for ComfyUI
exports/step_000500/transformer/{config.json, ...}     full: LTXVideoTransformer3DModel.from_pretrained
exports/step_000500/merged/{transformer/, comfyui/}    a LoRA in the weights of its base, where that is asked for
"""

from __future__ import annotations

import secrets
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from dist_trainer.checkpoints.checkpoint import EMA, MASTER, Checkpoint, newest, open_checkpoint
from dist_trainer.checkpoints.kept import is_of, name_of
from dist_trainer.config import RunConfig, dump, load
from dist_trainer.exporting.facts import read_facts
from dist_trainer.exporting.pipeline import Parts, add_parts
from dist_trainer.exporting.transformer import write_folder, write_single
from dist_trainer.exporting.weights import Weights, heeding, merged, stored, trained
from dist_trainer.model.family import LORA_FILE, read_config
from dist_trainer.model.lora import adapter_config, adapter_state, lora_config
from dist_trainer.model.ltx.keys import comfyui_lora_file, lora_file
from dist_trainer.model.start import SETTING, Start
from dist_trainer.model.start_weights import checkpoint_of
from dist_trainer.model.weights import stored_tensors
from dist_trainer.rundir import RunFolder
from dist_trainer.watch import progress
from shards.atomic import sync_folder
from shards.errors import InputError
from shards.source import part
from shards.storage.masked import masked

Format = Literal["diffusers", "comfyui", "both"]
COMFYUI = "comfyui"
MERGED = "merged"
_LEFT_S = 24 * 3600.0


@dataclass(frozen=True)
class Wanted:
    """What to write of a checkpoint.

    `formats`: by default both of a LoRA, diffusers' of a full model. `dtype`: by default float32 of a LoRA, what the
    run computed in of a full model. `merge`: a LoRA in the weights of its base, as a full model. `parts`: with a full
    model, the other parts of its base too, as links or copies, so that the folder is a whole pipeline. `ema`: the
    running mean of the weights, which goes into a folder `ema` with the same things in it.
    """

    formats: Format | None = None
    dtype: torch.dtype | None = None
    merge: bool = False
    parts: Parts | None = None
    ema: bool = False


_USUAL = Wanted()


def export(
    root: Path, steps: int | None = None, wanted: Wanted = _USUAL, heed: Callable[[], None] = progress.moved
) -> Path:
    """Export the run in `root` at the checkpoint of `steps` (None: the newest). Returns the folder written to.

    What an earlier export of the step has written stays, but for what is written again. Raises InputError when
    `root` holds no run or no complete checkpoint, and when what is wanted cannot be had of it. `heed` is called before
    each tensor; what it raises ends the export, of which nothing is left then.
    """
    run = RunFolder(root)
    if not run.config.is_file():
        raise InputError(f"{root}: no config.yaml; name a run's output folder")
    config = load(run.config)
    lora = config.model.training_mode == "lora"
    if wanted.merge and not lora:
        raise InputError(f"--merge: {root} trained a full model; there is no LoRA to merge")
    if wanted.parts and lora and not wanted.merge:
        raise InputError("--pipeline: a LoRA is loaded into its base's pipeline; use it with --merge")
    checkpoint = open_checkpoint(run.checkpoints, steps) if steps is not None else newest(run.checkpoints)
    if checkpoint is None:
        raise InputError(f"{run.checkpoints}: no complete checkpoint yet")
    if wanted.ema and EMA not in checkpoint.kinds:
        raise InputError(
            f"--ema: {checkpoint.folder}: holds no running mean; optimization.ema_decay keeps one"
        )
    final = run.exports / checkpoint.folder.name
    _clear_left(run.exports)
    # Not the process's number: two machines may export the same run.
    temporary = run.exports / f".{final.name}.{secrets.token_hex(4)}.tmp"
    temporary.mkdir(parents=True)
    try:
        _write(temporary, run, config, checkpoint, wanted, heed)
        _take_over(temporary, final)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def is_exported(config: RunConfig, run: RunFolder, step: int, formats: Format) -> bool:
    """Whether the export of a step is there in these formats, of the checkpoint that has its name now.

    Each takes its name when it is complete.
    """
    folder = run.exports / name_of(step)
    diffusers = folder / (LORA_FILE if config.model.training_mode == "lora" else "transformer")
    pieces = {
        "diffusers": (diffusers,),
        "comfyui": (folder / COMFYUI,),
        "both": (diffusers, folder / COMFYUI),
    }
    checkpoint = run.checkpoints / folder.name
    return all(is_of(piece, checkpoint) for piece in pieces[formats])


def _write(
    folder: Path,
    run: RunFolder,
    config: RunConfig,
    checkpoint: Checkpoint,
    wanted: Wanted,
    heed: Callable[[], None],
) -> None:
    header = _header(run, config, checkpoint.step)
    name = f"{run.root.resolve().name}_{checkpoint.folder.name}"
    weights = heeding(trained(checkpoint, EMA if wanted.ema else MASTER), heed)
    if wanted.ema:
        folder, name = folder / EMA, f"{name}_ema"
        folder.mkdir()
        header["ema_decay"] = str(config.optimization.ema_decay)
    if config.model.training_mode == "full":
        _write_full(folder, name, weights, config, wanted, header)
    elif wanted.merge:
        assert config.lora is not None, "the config's rules require a lora block in lora mode"
        with ExitStack() as stack:
            whole = merged(_base(run, config, stack), weights, config.lora.alpha / config.lora.rank)
            _write_full(folder / MERGED, f"{name}_merged", heeding(whole, heed), config, wanted, header)
    else:
        _write_lora(folder, name, weights, config, wanted, header)


def _base(run: RunFolder, config: RunConfig, stack: ExitStack) -> Weights:
    """The frozen weights a LoRA was trained on."""
    start = _start(run)
    if start is None or start.kind == "adapter":
        return stored(stored_tensors(part(config.model.model_source, "transformer")), stack)
    if start.is_checkpoint:
        return trained(checkpoint_of(start))
    return stored(stored_tensors(start.path, SETTING), stack)


def _start(run: RunFolder) -> Start | None:
    state = run.read_state()
    return Start(**state.started_from) if state and state.started_from else None  # type: ignore[arg-type]


def _write_lora(
    folder: Path, name: str, weights: Weights, config: RunConfig, wanted: Wanted, header: dict[str, str]
) -> None:
    assert config.lora is not None, "the config's rules require a lora block in lora mode"
    lora = config.lora
    dtype = wanted.dtype or torch.float32
    tensors = adapter_state({key: weights.read(key).to(dtype) for key in weights.shapes})
    if wanted.formats != "comfyui":
        settings = adapter_config(lora_config(lora.rank, lora.alpha, lora.dropout, lora.target_modules))
        lora_file(folder / LORA_FILE, tensors, settings, header)
    if wanted.formats != "diffusers":
        (folder / COMFYUI).mkdir()
        comfyui_lora_file(folder / COMFYUI / f"{name}.safetensors", tensors, lora.alpha, header)


def _write_full(
    folder: Path, name: str, weights: Weights, config: RunConfig, wanted: Wanted, header: dict[str, str]
) -> None:
    computed = torch.bfloat16 if config.acceleration.precision == "bf16" else torch.float32
    dtype = wanted.dtype or computed
    source = config.model.model_source
    if wanted.formats != "comfyui":
        write_folder(folder / "transformer", weights, read_config(source), dtype, header)
        if wanted.parts:
            add_parts(folder, source, wanted.parts)
    if wanted.formats in ("comfyui", "both"):
        (folder / COMFYUI).mkdir(parents=True)
        path = folder / COMFYUI / f"{name}.safetensors"
        write_single(path, weights, read_config(source), config.model.causal_positions, dtype, header)


def _header(run: RunFolder, config: RunConfig, step: int) -> dict[str, str]:
    """What a file's header says of where its weights come from."""
    lora = "ic_lora" if config.conditioning.mode == "reference_video" else "lora"
    start = _start(run)
    return {
        "base_model": config.model.model_source,
        "training_mode": lora if config.model.training_mode == "lora" else "full",
        "step": str(step),
        **({"started_from": start.place} if start else {}),
        **read_facts(run),
        "training_config": masked(dump(config)),
    }


def _clear_left(exports: Path) -> None:
    """Remove what killed exports left: unfinished folders in which nothing has moved for a day."""
    for folder in exports.glob(".step_*.tmp"):
        with suppress(OSError):  # another export may be clearing it, or ending
            # Not the time of modification: a copied part of a pipeline brings its own.
            newest_change = max(path.lstat().st_ctime for path in (folder, *folder.rglob("*")))
            if time.time() - newest_change > _LEFT_S:
                shutil.rmtree(folder)


def _take_over(temporary: Path, final: Path) -> None:
    """Move what was written into the step's folder, each piece of it whole, in place of what is there.

    It is on the disk then: the run's end is noted after it, and its checkpoint may go.
    """
    pieces = list(temporary.iterdir())
    changed = {final.parent.parent, final.parent, final}
    while pieces:
        piece = pieces.pop()
        if piece.name in (MERGED, EMA):
            pieces += piece.iterdir()
            continue
        target = final / piece.relative_to(temporary)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir() and not target.is_symlink():
            aside = piece.with_name(f".old_{piece.name}")
            target.rename(aside)
        elif target.is_symlink():
            target.unlink()
        piece.replace(target)
        changed |= {target.parent, target.parent.parent}
    for folder in sorted(changed, reverse=True):
        sync_folder(folder)
