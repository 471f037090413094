"""One training example: its tensors, and the safetensors payload they are stored as."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from safetensors.torch import save

from shards.formats.header import ITEM_BYTES, Entry, read_header, sample_geometry

_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}


@dataclass(frozen=True, eq=False)
class Sample:
    """A sample as read. The tensors may share one buffer with the other samples of the same read."""

    key: str
    id: int  # xxh3_64 of the key
    latents: torch.Tensor  # [C, F, H, W]
    prompt_embeds: torch.Tensor  # [T, D], real tokens only
    references: tuple[torch.Tensor, ...]  # [C, F', H', W'] each, of an IC-LoRA sample
    fps: float  # frames per second of the clip the latents came from


def payload(tensors: Mapping[str, torch.Tensor]) -> bytes:
    """Safetensors bytes of ``latents [C,F,H,W]``, ``prompt_embeds [T,D]`` and optional references.

    The references are ``reference_latents``, ``reference_latents_2`` and so on, [C,F',H',W'].

    Equal tensors give equal bytes. Raises ValueError for a missing tensor or a wrong number of dimensions.
    """
    data = save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    sample_geometry(read_header(data))
    return data


def parse(buffer: torch.Tensor | bytearray | memoryview | bytes) -> dict[str, torch.Tensor]:
    """Tensors of a payload, sharing its memory.

    ``buffer`` is a one-dimensional uint8 tensor, or writable bytes; read-only bytes are copied once.
    Raises ValueError when the header is damaged or the payload is cut short.
    """
    if not isinstance(buffer, torch.Tensor):
        writable = bytearray(buffer) if memoryview(buffer).readonly else buffer
        buffer = (
            torch.frombuffer(writable, dtype=torch.uint8)
            if len(writable)
            else torch.empty(0, dtype=torch.uint8)
        )
    return views(buffer, 0, read_header(buffer.numpy().data))


def views(buffer: torch.Tensor, start: int, entries: Mapping[str, Entry]) -> dict[str, torch.Tensor]:
    """Tensors of a payload that begins ``start`` bytes into the uint8 tensor ``buffer``, sharing its memory.

    Data that another writer left unaligned is copied, as torch cannot address it in place.
    """
    tensors = {}
    for name, entry in entries.items():
        data = buffer[start + entry.begin : start + entry.end]
        if data.storage_offset() % ITEM_BYTES[entry.dtype]:
            data = data.clone()
        tensors[name] = data.view(_DTYPES[entry.dtype]).view(entry.shape)
    return tensors
