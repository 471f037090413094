"""Prompts, first frames and references of the sample videos, encoded once at a run's start by rank 0.

They lie in RUN/validation/<hash>.safetensors, and references as they are shown in <hash>_01.mp4, where the ranks that
make the videos, and a later start of the run, find them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dist_trainer.build import Data
from dist_trainer.checkpoints.saving import heeding_room
from dist_trainer.config import RunConfig
from dist_trainer.dist import Gathering
from dist_trainer.rundir import RunFolder
from dist_trainer.validation.decode import with_room
from dist_trainer.validation.request import PARTS, Request, check, request
from dist_trainer.validation.scheduler import read_scheduler
from dist_trainer.validation.show import sweep, write
from dist_trainer.watch import progress
from shards.atomic import replacing
from shards.errors import InputError
from shards.hashing import mix
from shards.prepare.encode.encoders import choose_dtype
from shards.prepare.encode.models import (
    load_8bit_text_encoder,
    load_text_encoder,
    load_tokenizer,
    load_vae,
)
from shards.prepare.encode.options import EncodeOptions
from shards.prepare.encode.text import encode_prompt
from shards.prepare.encode.vae import encode_clips
from shards.prepare.media.clip_error import ClipError
from shards.prepare.media.video import cover, read_clip
from shards.source import part

ENCODING_S = 2 * 3600.0  # of fetching and reading a large text encoder; the watch sees one that stands still
_VERSION = 1
_FIRST, _REFERENCE = range(2)
_CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class Case:
    """What a sample video is made from: `text` bfloat16 [T,D], and `negative` where guidance wants it; a clean first
    frame [C,1,H,W] and a reference [C,F',H',W'], both latents in bfloat16, where there are any.
    """

    text: Tensor
    negative: Tensor | None
    first: Tensor | None
    reference: Tensor | None


@dataclass(frozen=True)
class Cases:
    """The sample videos that are wanted, the file with all that they are made from, and the scheduler's config.

    `model`: where this host has the folder vae/; None on a rank that makes no videos.
    """

    wanted: Request
    path: Path
    scheduler: Mapping[str, Any]
    model: Path | None


def shown(path: Path, prompt: int) -> Path:
    """The reference of a prompt as it is shown, beside the file `path` of cases."""
    return path.with_name(f"{path.stem}_{prompt + 1:02d}.mp4")


def encode_cases(config: RunConfig, data: Data, folder: RunFolder, gathering: Gathering) -> Cases | None:
    """What the sample videos of a run are made from, on every rank; rank 0 writes it, unless it is there.

    None where none are wanted. Raises InputError for sizes, models and files that cannot be used; where one rank alone
    sees that, the others raise MissingRanks.
    """
    patch, world = data.feeding.recipe.patch, gathering.world
    wanted, found = request(config, data.dataset, patch), ""
    if wanted is None:
        return None
    progress.doing("encoding the prompts of the sample videos")
    if world.is_main:
        check(config, data.dataset, patch)
        identity = json.dumps(_identity(config, wanted), sort_keys=True)
        scheduler = read_scheduler(part(config.model.model_source, "scheduler"))
        name = f"{xxhash.xxh3_64_hexdigest(identity.encode())}.safetensors"
        path = folder.prompts / name
        if not _is_whole(path, config, wanted):
            _write(path, config, wanted, _encoded(config, wanted, world.device))
        found = json.dumps([name, scheduler])
    limit = max(ENCODING_S, gathering.timeout_s)
    name, scheduler = json.loads(gathering.share("prompts of the sample videos", found, limit))
    model = _model_here(config.model.model_source, world.rank < len(wanted.videos), limit, gathering)
    return Cases(wanted, folder.prompts / name, scheduler, model)


def read_case(path: Path, prompt: int) -> Case:
    """What the videos of a prompt are made from. Raises OSError or SafetensorError where it cannot be read."""
    names = ("text", "first", "reference")
    with safe_open(path, "pt") as file:
        there = set(file.keys())
        found = {name: file.get_tensor(f"{name}.{prompt}") for name in names if f"{name}.{prompt}" in there}
        negative = file.get_tensor("negative") if "negative" in there else None
    return Case(found["text"], negative, found.get("first"), found.get("reference"))


def _model_here(source: str, makes_videos: bool, limit: float, gathering: Gathering) -> Path | None:
    """Where this host has the folder vae/ of a model, for a rank that makes videos.

    One of the hub is fetched by the first rank of each host, before the others ask, and before training: a look at the
    model would keep all ranks waiting.
    """
    if makes_videos and gathering.world.local_rank == 0:
        part(source, "vae")
    gathering.meet("VAE of the sample videos", limit)
    return part(source, "vae").parent if makes_videos else None


def _reference(config: RunConfig, wanted: Request, prompt: int, size: tuple[int, int]) -> np.ndarray:
    """The frames of a prompt's reference, uint8 [F',height,width,3] of `size` (height, width)."""
    assert config.validation.reference_videos is not None
    assert wanted.reference_size is not None
    return _clip(prompt, config.validation.reference_videos[prompt], wanted.reference_size[0], size)


def _clip(prompt: int, file: str, frames: int, size: tuple[int, int]) -> np.ndarray:
    height, width = size
    try:
        return read_clip(Path(file), frames, cover(width, height))
    except ClipError as error:
        raise InputError(f"validation.prompts.{prompt}: {error}") from error


def _encoded(config: RunConfig, wanted: Request, device: torch.device) -> dict[str, Tensor]:
    tensors = dict(_texts(config, device))
    if config.validation.images is not None or wanted.reference is not None:
        tensors |= dict(_pictures(config, wanted, device))
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return tensors


def _texts(config: RunConfig, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Embeddings by name. The text encoder is in memory only meanwhile."""
    settings, source = config.validation, config.model.model_source
    tokenizer, dtype = load_tokenizer(source), choose_dtype("auto", device)
    if config.acceleration.load_text_encoder_in_8bit and device.type == "cuda":
        if importlib.util.find_spec("bitsandbytes") is None:
            raise InputError(
                "acceleration.load_text_encoder_in_8bit: needs the package bitsandbytes, which is not installed: "
                "`pip install bitsandbytes`, or set it to false"
            )
        encoder = load_8bit_text_encoder(source, dtype, device)
    else:
        encoder = load_text_encoder(source, dtype).to(device)
    longest = EncodeOptions().max_text_tokens
    named = {f"text.{number}": prompt for number, prompt in enumerate(settings.prompts)}
    if settings.guidance_scale > 1:
        named["negative"] = settings.negative_prompt
    for name, prompt in named.items():
        progress.moved()
        yield name, encode_prompt(tokenizer, encoder, prompt, longest)[0]


def _pictures(config: RunConfig, wanted: Request, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Latents of first frames and references by name."""
    settings = config.validation
    vae = load_vae(config.model.model_source, choose_dtype("auto", device)).to(device)
    for number in range(len(settings.prompts)):
        progress.moved()
        clips = {}
        if settings.images is not None:
            clips[f"first.{number}"] = _clip(number, settings.images[number], 1, wanted.size[1:]), _FIRST
        if wanted.reference_size is not None:
            frames = _reference(config, wanted, number, wanted.reference_size[1:])
            clips[f"reference.{number}"] = frames, _REFERENCE
        for name, (frames, purpose) in clips.items():
            noise = torch.Generator().manual_seed(int(mix(settings.seed, number, purpose)))
            yield name, with_room(vae, partial(encode_clips, vae, [frames], [noise]))[0]


def _identity(config: RunConfig, wanted: Request) -> Mapping[str, Any]:
    """All that the encoded tensors depend on: texts, contents of files, sizes, and the encoders by their files."""
    settings, source = config.validation, config.model.model_source
    files = {"images": settings.images or ()}
    if wanted.reference is not None:
        files["references"] = settings.reference_videos or ()
    return {
        "version": _VERSION,
        "prompts": settings.prompts,
        "negative": settings.negative_prompt if settings.guidance_scale > 1 else None,
        "8bit": config.acceleration.load_text_encoder_in_8bit,
        "size": wanted.size,
        "reference": wanted.reference_size,
        "seed": settings.seed,
        "files": {key: [_content(Path(path)) for path in paths] for key, paths in files.items()},
        # Hashing a large text encoder takes as long as to use it. All parts, so that those of the hub are here early.
        "models": {name: _state(part(source, name)) for name in PARTS},
    }


def _content(path: Path) -> str:
    digest = xxhash.xxh3_64()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise InputError(f"validation: {path}: cannot be read: {error.strerror}") from error
    return digest.hexdigest()


def _state(folder: Path) -> list[tuple[str, int, int]]:
    """Name, size and time of a model part's files."""
    found = [(file.name, file.stat()) for file in sorted(folder.iterdir()) if file.is_file()]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in found]


def _is_whole(path: Path, config: RunConfig, wanted: Request) -> bool:
    """Whether the file is there and can be read to its end, and references to be shown are there."""
    prompts = range(len(config.validation.prompts))
    try:
        for prompt in prompts:
            read_case(path, prompt)
    except (OSError, SafetensorError, KeyError):
        return False
    return wanted.reference is None or all(shown(path, prompt).is_file() for prompt in prompts)


def _write(path: Path, config: RunConfig, wanted: Request, tensors: Mapping[str, Tensor]) -> None:
    """Keep what was encoded, the references first: they may lie where no other host, and no later start, reads them."""
    try:
        with heeding_room(path.parent):
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            for prompt in range(len(config.validation.prompts)) if wanted.reference else ():
                _write_reference(shown(path, prompt), config, wanted, prompt)
            with replacing(path) as file:
                file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    except OSError as error:
        raise InputError(
            f"output_dir: {path.parent}: cannot be written: {error}; choose another folder"
        ) from error


def _write_reference(path: Path, config: RunConfig, wanted: Request, prompt: int) -> None:
    progress.moved()
    frames = _reference(config, wanted, prompt, wanted.size[1:])
    try:
        write(path, frames, config.validation.frame_rate)
    except ClipError as error:
        raise InputError(
            f"validation.prompts.{prompt}: its reference, to be shown as {path}: {error.reason}"
        ) from error
