"""The safetensors header of one sample: what tensors it holds and where, read without torch.

Format: 8 bytes little-endian length, then that many bytes of JSON, then the tensors' data.
"""

from __future__ import annotations

import struct
from collections.abc import Container, Mapping
from functools import lru_cache
from math import prod
from typing import Any, NamedTuple

from shards.formats.text import parse_json
from shards.geometry import Grid

MOST = 2**31 - 1  # of any size: bytes of a payload, a tensor's side; the manifest has 32 bits for them
_MOST_DIMENSIONS = 16
_SHORT = 4096  # bytes of a header that is worth keeping

ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}
_PREFIX_BYTES = 8


class Entry(NamedTuple):
    """One tensor: dtype as safetensors names it, shape, and its bytes ``[begin, end)`` in the payload."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Geometry(NamedTuple):
    """Sizes of one sample as its tensors say; ``references`` in their order, none for most samples."""

    grid: Grid
    references: tuple[Grid, ...]
    text_tokens: int
    channels: int
    text_width: int


def header_bytes(prefix: bytes | memoryview) -> int:
    """Bytes from the payload's start to the first tensor, from its first 8 bytes. ValueError if cut short."""
    if len(prefix) < _PREFIX_BYTES:
        raise ValueError(f"a safetensors payload has at least {_PREFIX_BYTES} bytes, this one {len(prefix)}")
    return _PREFIX_BYTES + int(struct.unpack_from("<Q", prefix)[0])


def read_header(payload: bytes | memoryview, nbytes: int | None = None) -> Mapping[str, Entry]:
    """Tensors of a payload by name. Where ``nbytes``, its length, is given, the header alone is enough.

    Raises ValueError saying what is wrong when the header is not whole or does not fit the payload's length.
    """
    total = len(payload) if nbytes is None else nbytes
    start = header_bytes(payload)
    if start > min(total, len(payload)):
        raise ValueError(f"the safetensors header claims {start} bytes of a payload of {total}")
    if total > MOST:
        raise ValueError(f"a payload has at most {MOST} bytes, this one {total}")
    header = bytes(payload[_PREFIX_BYTES:start])
    return (_remembered if len(header) <= _SHORT else _entries)(header, total)


def _entries(header: bytes, total: int) -> Mapping[str, Entry]:
    start = _PREFIX_BYTES + len(header)
    try:
        return {
            name: _entry(name, value, start, total)
            for name, value in parse_json(header).items()
            if name != "__metadata__"
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"the safetensors header is not readable: {error}") from error


# Samples of equal geometry have equal headers, and reading one takes longer than the rest of a small sample.
_remembered = lru_cache(maxsize=4096)(_entries)


def _entry(name: str, value: dict, start: int, total: int) -> Entry:
    dtype, shape = value["dtype"], tuple(map(_size, value["shape"]))
    begin, end = (start + _size(offset) for offset in value["data_offsets"])
    if dtype not in ITEM_BYTES:
        raise ValueError(f"tensor {name!r} has dtype {dtype}; {', '.join(ITEM_BYTES)} are read")
    if len(shape) > _MOST_DIMENSIONS:
        raise ValueError(f"tensor {name!r} has {len(shape)} dimensions, {_MOST_DIMENSIONS} at most")
    if not start <= begin <= end <= total or end - begin != prod(shape) * ITEM_BYTES[dtype]:
        raise ValueError(f"tensor {name!r} {dtype} {shape} does not fit bytes {begin} to {end} of {total}")
    return Entry(dtype, shape, begin, end)


def _size(value: Any) -> int:
    if type(value) is not int or not 0 <= value <= MOST:
        raise ValueError(f"the safetensors header has {value!r} where a size is expected")
    return value


def sample_geometry(entries: Mapping[str, Entry]) -> Geometry:
    """Geometry from ``latents [C,F,H,W]``, ``prompt_embeds [T,D]`` and what ``reference_names`` finds, [C,F,H,W].

    Raises ValueError naming the tensor that is missing or has another number of dimensions.
    """
    channels, grid = _latents(entries, "latents")
    text = entries.get("prompt_embeds")
    if text is None or len(text.shape) != 2 or text.shape[1] < 1:
        raise ValueError(f"prompt_embeds [T, D] is needed, found {text.shape if text else 'none'}")
    references = []
    for name in reference_names(entries):
        reference_channels, reference = _latents(entries, name)
        if reference_channels != channels:
            raise ValueError(f"{name} has {reference_channels} channels, latents {channels}")
        references.append(reference)
    return Geometry(grid, tuple(references), text.shape[0], channels, text.shape[1])


def reference_names(names: Container[str]) -> list[str]:
    """Those of ``reference_latents``, ``reference_latents_2``, ``reference_latents_3``, ... that are there."""
    found: list[str] = []
    while (name := reference_name(len(found))) in names:
        found.append(name)
    return found


def reference_name(index: int) -> str:
    """Name of the tensor of a sample's reference number ``index``, from 0."""
    return "reference_latents" if index == 0 else f"reference_latents_{index + 1}"


def _latents(entries: Mapping[str, Entry], name: str) -> tuple[int, Grid]:
    entry = entries.get(name)
    if entry is None or len(entry.shape) != 4 or min(entry.shape) < 1:
        raise ValueError(f"{name} [C, F, H, W] is needed, found {entry.shape if entry else 'none'}")
    return entry.shape[0], Grid(*entry.shape[1:])
