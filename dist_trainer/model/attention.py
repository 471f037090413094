"""Attention inside each sample of a pack. The only place that asks which device it runs on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.varlen import varlen_attn

_FLASH_DTYPES = (torch.bfloat16, torch.float16)


@dataclass(frozen=True, eq=False)
class Lengths:
    """How many tokens each of the S samples of a pack has, on the device and on the host.

    The host copy exists so that no forward has to wait for the device to know where a sample ends.
    `values`: S ints. `cumulative`: int32 [S+1], starts at 0. `longest`: max of `values`.
    """

    values: tuple[int, ...]
    cumulative: Tensor
    longest: int

    @classmethod
    def of(cls, values: Sequence[int]) -> Lengths:
        """Lengths on the CPU from S positive ints."""
        counts = tuple(int(value) for value in values)
        if not counts or min(counts) < 1:
            raise ValueError(f"every sample of a pack needs at least one token, got lengths {counts}")
        ends = torch.tensor((0, *counts)).cumsum(0).to(torch.int32)
        return cls(counts, ends, max(counts))

    @property
    def total(self) -> int:
        """Tokens of the whole pack."""
        return sum(self.values)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Lengths:
        """The same lengths with `cumulative` on `device`."""
        return Lengths(self.values, self.cumulative.to(device, non_blocking=non_blocking), self.longest)


def attend(q: Tensor, k: Tensor, v: Tensor, queries: Lengths, keys: Lengths) -> Tensor:
    """Full attention of every sample's queries over the same sample's keys, and over no other's.

    `q` [N,H,d], `k` and `v` [M,H,d] with N = queries.total and M = keys.total; samples lie end to end in the
    same order in both. Returns [N,H,d]. Scale 1/sqrt(d), no mask, no dropout. A GPU in half precision runs
    one variable-length flash kernel; everything else one SDPA call per sample (`varlen_attn` has neither a
    CPU nor a float32 kernel).
    """
    if q.is_cuda and q.dtype in _FLASH_DTYPES:
        attended = varlen_attn(q, k, v, queries.cumulative, keys.cumulative, queries.longest, keys.longest)
        assert isinstance(attended, Tensor)
        return attended
    samples = zip(q.split(queries.values), k.split(keys.values), v.split(keys.values), strict=True)
    return torch.cat([_one_sample(*sample) for sample in samples])


def _one_sample(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v).squeeze(0).transpose(0, 1)
