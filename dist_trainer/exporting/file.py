"""A safetensors file written tensor by tensor: a file of any size needs memory for one of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from shards.atomic import replacing

_NAMES = {torch.bfloat16: "BF16", torch.float32: "F32"}


def write_tensors(
    path: Path,
    shapes: Mapping[str, tuple[int, ...]],
    read: Callable[[str], torch.Tensor],
    dtype: torch.dtype,
    metadata: Mapping[str, str],
) -> None:
    """Write the tensors that `read` gives by the names of `shapes`, in `dtype` (bfloat16 or float32).

    The file is complete or not there at all. `metadata` goes into its header.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    end = 0
    for name, shape in shapes.items():
        begin, end = end, end + dtype.itemsize * math.prod(shape)
        header[name] = {"dtype": _NAMES[dtype], "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    # The format wants data to begin at a multiple of 8.
    text += b" " * (-len(text) % 8)
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, shape in shapes.items():
            tensor = read(name)
            assert tuple(tensor.shape) == tuple(shape), f"{name}: {tuple(tensor.shape)}, not {tuple(shape)}"
            flat = tensor.detach().to("cpu", dtype).contiguous().reshape(-1)
            file.write(flat.view(torch.uint8).numpy().data)
