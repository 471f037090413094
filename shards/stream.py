"""Load things ahead of their use, in order, in background threads."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


@contextmanager
def stream(
    items: Iterable[T], load: Callable[[T], U], depth: int, name: str = "stream", threads: int = 1
) -> Iterator[Iterator[U]]:
    """Give an iterator over ``load(item)``, in the order of ``items``, running at most ``depth`` items ahead.

        with stream(steps, reader_call, depth=2) as batches:
            for batch in batches: ...

    ``items`` may be endless; it is advanced in the consumer's thread, ``load`` runs in ``threads`` others,
    whose names start with ``name``. An error of either is raised in the consumer in its turn, after
    everything before it. Leaving the block early drops what was loaded ahead, waits for the calls that are
    running and ends the threads.
    """
    if depth < 1 or threads < 1:
        raise ValueError(f"depth and threads must be at least 1, got {depth} and {threads}")
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    results = _in_order(iter(items), load, depth, pool)
    try:
        yield results
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        results.close()


def _in_order(
    items: Iterator[T], load: Callable[[T], U], depth: int, pool: ThreadPoolExecutor
) -> Generator[U, None, None]:
    ahead: deque[Future[U]] = deque()
    more = True
    while True:
        while more and len(ahead) < depth:
            more = _submit(items, load, pool, ahead)
        if not ahead:
            return
        # The slot of the item handed out is filled before the consumer works on it, not after.
        current = ahead.popleft()
        if more:
            more = _submit(items, load, pool, ahead)
        yield current.result()


def _submit(
    items: Iterator[T], load: Callable[[T], U], pool: ThreadPoolExecutor, ahead: deque[Future[U]]
) -> bool:
    """Start loading the next item; False at the end, or when getting it failed (the error takes its turn)."""
    try:
        item = next(items)
    except StopIteration:
        return False
    except Exception as error:
        failed: Future[U] = Future()
        failed.set_exception(error)
        ahead.append(failed)
        return False
    ahead.append(pool.submit(load, item))
    return True
