"""One device: that it is there, computes, and computes right."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_CPU_SIDE, _GPU_SIDE = 128, 4096
_TIMES = 5


def try_device(
    device: torch.device, multiply: Callable[[Tensor, Tensor], Tensor] = torch.matmul
) -> dict[str, Any]:
    """Multiply two matrices on `device` and compare every element with the known product.

    Returns its kind, name, uuid, memory and free memory (bytes), the devices visible here, and its speed (operations
    per second; 0 for a CPU, whose speed says little). Raises RuntimeError when it does not compute, or computes wrong.
    """
    side = _GPU_SIDE if device.type == "cuda" else _CPU_SIDE
    left, right, product = matrices(side, device)
    wrong = int((multiply(left, right) != product).sum())
    if wrong:
        raise RuntimeError(f"{device} computes wrong: {wrong} of {side * side} elements of a known product")
    found: dict[str, Any] = {"kind": device.type, "name": "CPU", "visible": 0, "speed": 0.0}
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        free, memory = torch.cuda.mem_get_info(device)
        found |= {
            "name": properties.name,
            "uuid": str(properties.uuid),
            "visible": torch.cuda.device_count(),
            "memory": memory,
            "free": free,
            "speed": _speed(left.bfloat16(), right.bfloat16()),
        }
        del left, right, product
        torch.cuda.empty_cache()
    return found


def matrices(side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Two float32 [side, side] of small whole numbers and their product, exact whatever the order of the sums."""
    row, inner = torch.arange(side, device=device) % 8, torch.arange(side, device=device) % 2
    left = (row[:, None] + inner[None, :]).float()
    right = (row + 1).float().expand(side, side)
    return left, right.contiguous(), (row[:, None] * side + side // 2).float() * (row + 1)[None, :]


def _speed(left: Tensor, right: Tensor) -> float:
    """Operations per second of a product of two matrices [side, side]."""
    torch.matmul(left, right)
    torch.cuda.synchronize(left.device)
    began = time.perf_counter()
    for _ in range(_TIMES):
        torch.matmul(left, right)
    torch.cuda.synchronize(left.device)
    return _TIMES * 2 * len(left) ** 3 / (time.perf_counter() - began)
