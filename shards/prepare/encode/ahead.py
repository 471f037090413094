"""Several sources run ahead of their use in threads, each into a small buffer; their parts come in order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from queue import Full, Queue
from typing import NamedTuple, TypeVar

T = TypeVar("T")
U = TypeVar("U")
_LOOK_S = 0.1  # how often a thread whose buffer is full looks whether the block was left


class _End(NamedTuple):
    error: BaseException | None


@contextmanager
def running_ahead(
    items: Iterable[T],
    parts: Callable[[T], Generator[U, None, None]],
    *,
    threads: int,
    room: int = 1,
    name: str = "ahead",
) -> Iterator[Iterator[tuple[T, U]]]:
    """Give an iterator over `(item, part)` for each part of each item, in order.

        with running_ahead(rows, decode, threads=4) as windows:
            for row, window in windows: ...

    The parts of `threads` items are made at a time, beginning when the block is entered; of each item
    `room + 1` parts wait at most, so an item may have any number of them. An error of `parts` is raised in
    its turn. Leaving the block ends the threads.
    """
    leaving = threading.Event()
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    # The pool begins items in order, so the one whose turn it is always runs or has run.
    waiting: list[tuple[T, Queue[U | _End]]] = [(item, Queue(room)) for item in items]
    for item, queue in waiting:
        pool.submit(_fill, parts, item, queue, leaving)
    try:
        yield _in_order(waiting)
    finally:
        leaving.set()
        pool.shutdown(wait=True, cancel_futures=True)


def _fill(
    parts: Callable[[T], Generator[U, None, None]], item: T, queue: Queue[U | _End], leaving: threading.Event
) -> None:
    def put(entry: U | _End) -> bool:
        while not leaving.is_set():
            try:
                queue.put(entry, timeout=_LOOK_S)
            except Full:
                continue
            return True
        return False

    try:
        with closing(parts(item)) as found:
            for part in found:
                if not put(part):
                    return
    except BaseException as error:
        put(_End(error))
        return
    put(_End(None))


def _in_order(waiting: Sequence[tuple[T, Queue[U | _End]]]) -> Iterator[tuple[T, U]]:
    for item, queue in waiting:
        while not isinstance(entry := queue.get(), _End):
            yield item, entry
        if entry.error is not None:
            raise entry.error
