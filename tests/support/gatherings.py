"""Several ranks in one process: a thread each, joined through one real store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import TypeVar

import torch.distributed as torch_dist

from dist_trainer.dist import Gathering
from dist_trainer.world import World

T = TypeVar("T")


def in_memory(size: int, timeout_s: float = 20.0) -> list[Gathering]:
    """The gatherings of `size` ranks that share a store in this process's memory."""
    store = torch_dist.HashStore()
    return [Gathering(World(rank, size, rank), store, timeout_s) for rank in range(size)]


def over_tcp(
    size: int, ranks: Sequence[int] | None = None, timeout_s: float = 20.0
) -> tuple[torch_dist.TCPStore, list[Gathering]]:
    """The gatherings of `ranks` (None: all) of a world, each a client of the TCP store that is returned too."""
    limit = timedelta(seconds=timeout_s)
    server = torch_dist.TCPStore("127.0.0.1", 0, size, True, limit, wait_for_workers=False)
    gatherings = []
    for rank in range(size) if ranks is None else ranks:
        client = torch_dist.TCPStore("127.0.0.1", server.port, size, False, limit, wait_for_workers=False)
        gatherings.append(Gathering(World(rank, size, rank), client, timeout_s))
    return server, gatherings


def at_once(act: Callable[[Gathering], T], gatherings: Sequence[Gathering]) -> list[T | Exception]:
    """What `act` returns, or the exception it raises, for every gathering, all at the same time."""

    def caught(gathering: Gathering) -> T | Exception:
        try:
            return act(gathering)
        except Exception as error:
            return error

    with ThreadPoolExecutor(len(gatherings)) as threads:
        return list(threads.map(caught, gatherings))
