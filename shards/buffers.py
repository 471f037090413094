"""Host buffers that are used again once nothing refers to them.

A fresh buffer of a step's size costs a page fault for every 4 KiB, which takes several times as long as
copying the data out of the page cache. So freed buffers are kept, and large ones ask for huge pages.
"""

from __future__ import annotations

import mmap
import weakref
from collections import deque

import numpy as np
import torch

_POOLED_FROM = 1 << 20  # malloc serves smaller buffers from memory that is already mapped
_HUGE_PAGE = 2 << 20


class BufferPool:
    """Hands out uint8 tensors; keeps up to ``spare`` freed buffers for later calls.

    A buffer comes back when the last tensor that shares its memory is gone, so what was handed out is never
    overwritten under a reader. Safe to use from several threads.
    """

    def __init__(self, spare: int = 4) -> None:
        self._free: deque[mmap.mmap] = deque(maxlen=spare)

    def take(self, nbytes: int) -> torch.Tensor:
        """A uint8 tensor [nbytes] with undefined contents."""
        if nbytes < _POOLED_FROM:
            return torch.empty(nbytes, dtype=torch.uint8)
        block = self._reuse(nbytes) or _map(nbytes)
        # The tensor holds the array and the array can be watched; the mapping cannot.
        array = np.frombuffer(block, np.uint8)
        weakref.finalize(array, self._free.append, block).atexit = False
        return torch.from_numpy(array)[:nbytes]

    def _reuse(self, nbytes: int) -> mmap.mmap | None:
        """A freed block that fits and is not wastefully large; the last freed first, it may be cached."""
        for _ in range(len(self._free)):
            try:
                block = self._free.pop()
            except IndexError:  # another thread took the last one
                return None
            if nbytes <= len(block) <= 4 * nbytes:
                return block
            self._free.appendleft(block)
        return None


def _map(nbytes: int) -> mmap.mmap:
    """Anonymous memory, rounded up by at most a quarter so that steps of similar size share blocks."""
    grain = max(_HUGE_PAGE, 1 << max(0, nbytes.bit_length() - 3))
    block = mmap.mmap(-1, -(-nbytes // grain) * grain, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        block.madvise(mmap.MADV_HUGEPAGE)
    return block
