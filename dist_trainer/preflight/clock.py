"""How far this host's clock is from that of rank 0, told through the ranks' store."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from torch.distributed import Store

_ROUNDS = 3


def answer(store: Store, ranks: Sequence[int], limit: float, now: Callable[[], float] = time.time) -> None:
    """Rank 0's part: tell each of `ranks` the time as soon as it asks. Raises torch's error past `limit` seconds."""
    for turn in range(_ROUNDS):
        for rank in ranks:
            store.wait([f"{turn}/ask/{rank}"], timedelta(seconds=limit))
            store.set(f"{turn}/told/{rank}", repr(now()))


def ask(store: Store, rank: int, limit: float) -> tuple[float, float]:
    """Seconds by which this clock is ahead of rank 0's, and how wrong that may be: half an answer's way."""
    best = (0.0, float("inf"))
    for turn in range(_ROUNDS):
        began = time.time()
        store.set(f"{turn}/ask/{rank}", "")
        store.wait([f"{turn}/told/{rank}"], timedelta(seconds=limit))
        told = float(store.get(f"{turn}/told/{rank}"))
        ended = time.time()
        best = min(best, ((began + ended) / 2 - told, (ended - began) / 2), key=lambda found: found[1])
    return best
