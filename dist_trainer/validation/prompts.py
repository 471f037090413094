"""Prompts, first frames and references of the sample videos, encoded once at a run's start by rank 0.

They lie in RUN/validation/<hash>.safetensors, where the ranks that make the videos, and a later start of the run, find
them.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from dist_trainer.build import Data
from dist_trainer.config import RunConfig
from dist_trainer.dist import Gathering
from dist_trainer.rundir import RunFolder
from dist_trainer.validation.decode import with_room
from dist_trainer.validation.request import PARTS, Request, check, request
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
    """The sample videos that are wanted, and the file with all that they are made from."""

    wanted: Request
    path: Path


def encode_cases(config: RunConfig, data: Data, folder: RunFolder, gathering: Gathering) -> Cases | None:
    """What the sample videos of a run are made from, on every rank; rank 0 writes it, unless it is there.

    None where none are wanted. Raises InputError for sizes, models and files that cannot be used; where rank 0 alone
    sees that, the others raise MissingRanks.
    """
    patch, world = data.feeding.recipe.patch, gathering.world
    wanted, name = request(config, data.dataset, patch), ""
    if wanted is None:
        return None
    progress.doing("encoding the prompts of the sample videos")
    if world.is_main:
        check(config, data.dataset, patch)
        identity = json.dumps(_identity(config, wanted), sort_keys=True)
        name = f"{xxhash.xxh3_64_hexdigest(identity.encode())}.safetensors"
        path = folder.prompts / name
        if not _is_whole(path, len(config.validation.prompts)):
            _write(path, _encoded(config, wanted, world.device))
    name = gathering.share("prompts of the sample videos", name, max(ENCODING_S, gathering.timeout_s))
    return Cases(wanted, folder.prompts / name)


def read_case(path: Path, prompt: int) -> Case:
    """What the videos of a prompt are made from. Raises OSError or SafetensorError where it cannot be read."""
    names = ("text", "first", "reference")
    with safe_open(path, "pt") as file:
        there = set(file.keys())
        found = {name: file.get_tensor(f"{name}.{prompt}") for name in names if f"{name}.{prompt}" in there}
        negative = file.get_tensor("negative") if "negative" in there else None
    return Case(found["text"], negative, found.get("first"), found.get("reference"))


def reference_frames(config: RunConfig, wanted: Request, prompt: int, size: tuple[int, int]) -> Any:
    """The frames of a prompt's reference, uint8 [F',height,width,3] of `size` (height, width).

    Raises ClipError where its file cannot be read.
    """
    assert config.validation.reference_videos is not None
    assert wanted.reference_size is not None
    height, width = size
    path = Path(config.validation.reference_videos[prompt])
    return read_clip(path, wanted.reference_size[0], cover(width, height))


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
    _, height, width = wanted.size
    for number in range(len(settings.prompts)):
        progress.moved()
        clips = {}
        try:
            if settings.images is not None:
                path = Path(settings.images[number])
                clips[f"first.{number}"] = read_clip(path, 1, cover(width, height)), _FIRST
            if wanted.reference_size is not None:
                size = wanted.reference_size[1:]
                clips[f"reference.{number}"] = reference_frames(config, wanted, number, size), _REFERENCE
        except ClipError as error:
            raise InputError(f"validation.prompts.{number}: {error}") from error
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


def _is_whole(path: Path, prompts: int) -> bool:
    """Whether the file is there and can be read to its end."""
    try:
        for prompt in range(prompts):
            read_case(path, prompt)
    except (OSError, SafetensorError, KeyError):
        return False
    return True


def _write(path: Path, tensors: Mapping[str, Tensor]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(save({name: tensor.contiguous() for name, tensor in tensors.items()}))
    except PermissionError as error:
        raise InputError(
            f"output_dir: {path.parent}: cannot be written: {error.strerror}; choose another folder"
        ) from error
