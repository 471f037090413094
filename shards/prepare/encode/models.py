"""The frozen models that encode a dataset: where they come from, and a fingerprint of their weights."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from diffusers import AutoencoderKLLTXVideo
from transformers import T5EncoderModel, T5TokenizerFast
from transformers.utils import logging as transformers_logging

from shards.errors import InputError
from shards.source import part

if TYPE_CHECKING:
    from torch import nn

T = TypeVar("T")

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def load_vae(model: str | Path, dtype: torch.dtype) -> AutoencoderKLLTXVideo:
    """The video autoencoder of a model, on the CPU, for inference.

    `model` is what `shards.source.part` takes: a pipeline folder, a hub id or a version name. Raises
    InputError when it has no such part, or one that cannot be read.
    """
    vae = _load(model, "vae", lambda path: AutoencoderKLLTXVideo.from_pretrained(path, torch_dtype=dtype))
    return vae.eval().requires_grad_(False)


def load_text_encoder(model: str | Path, dtype: torch.dtype) -> T5EncoderModel:
    """The T5 encoder of a model, on the CPU, for inference; `model` and errors as for `load_vae`."""
    encoder = _load(model, "text_encoder", lambda path: T5EncoderModel.from_pretrained(path, dtype=dtype))
    return encoder.eval().requires_grad_(False)


def load_8bit_text_encoder(model: str | Path, dtype: torch.dtype, device: torch.device) -> T5EncoderModel:
    """The T5 encoder of a model on `device`, its linear layers in 8 bits by bitsandbytes: half the memory.

    `dtype` is that of the other layers. `model` and errors as for `load_vae`; InputError too where bitsandbytes
    is not installed.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise InputError(
            "an 8-bit text encoder needs the package bitsandbytes, which is not installed: "
            "`pip install bitsandbytes`, or leave out --text-encoder-8bit"
        )
    from transformers import BitsAndBytesConfig

    how = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": {"": device}}
    encoder = _load(
        model, "text_encoder", lambda path: T5EncoderModel.from_pretrained(path, dtype=dtype, **how)
    )
    return encoder.eval().requires_grad_(False)


def load_tokenizer(model: str | Path) -> T5TokenizerFast:
    """The tokenizer of a model; `model` and errors as for `load_vae`."""

    def load(path: Path) -> T5TokenizerFast:
        # Without its vocabulary the class opens all the same, and takes every word for unknown.
        if not any((path / name).is_file() for name in T5TokenizerFast.vocab_files_names.values()):
            raise ValueError("neither tokenizer.json nor spiece.model is in it")
        return T5TokenizerFast.from_pretrained(path)

    return _load(model, "tokenizer", load)


def fingerprint(module: nn.Module) -> str:
    """First 16 hex digits of a SHA-256 over name, shape and values of all weights and buffers, by name.

    Floating-point values enter as bfloat16: a model has one fingerprint whatever dtype it was loaded in.
    """
    digest = hashlib.sha256()
    for name, value in sorted(module.state_dict().items()):
        plain = value.detach().to("cpu", torch.bfloat16 if value.is_floating_point() else value.dtype)
        digest.update(f"{name} {plain.dtype} {tuple(plain.shape)}\n".encode())
        digest.update(plain.contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:16]


def _load(model: str | Path, name: str, load: Callable[[Path], T]) -> T:
    path = part(model, name, "--model")
    transformers_logging.disable_progress_bar()  # over before a person has read it, and hundreds of lines in a log
    try:
        return load(path)
    except (OSError, ValueError, ImportError) as error:
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise InputError(f"{path}: this {name} cannot be loaded: {first}") from error
