"""Several sources run ahead of their use in threads, few of their parts at a time; parts come in order."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from queue import Empty, SimpleQueue
from typing import NamedTuple, TypeVar

T = TypeVar("T")
U = TypeVar("U")
_OF_ONE = 2  # parts of one item alive, at most
ALIVE_MORE = 2  # parts alive, at most, beside one for each thread


class Standstill(Exception):
    """Nothing came of an item for longer than it should take; its thread cannot be ended."""

    def __init__(self, item: object) -> None:
        super().__init__(f"nothing comes of {item}")
        self.item = item


class _End(NamedTuple):
    error: BaseException | None


class _Budget:
    """Leave to make parts: one for each thread and one more, and one for the item whose turn it is, always."""

    def __init__(self, threads: int) -> None:
        self._most = threads + ALIVE_MORE - 1
        self._alive: Counter[int] = Counter()  # parts of an item that are being made, wait or are in use
        self._turn = 0
        self._left = False
        self._changed = threading.Condition()

    def take(self, number: int) -> bool:
        """Wait until a part of item `number` may be made; False where the block was left."""
        with self._changed:
            self._changed.wait_for(lambda: self._left or self._is_free(number))
            self._alive[number] += 1
            return not self._left

    def give(self, number: int) -> None:
        """A part of item `number` is done with."""
        with self._changed:
            self._alive[number] -= 1
            self._changed.notify_all()

    def turn(self, number: int) -> None:
        """The parts of item `number` are wanted now."""
        with self._changed:
            self._turn = number
            self._changed.notify_all()

    def leave(self) -> None:
        """Nothing more is wanted."""
        with self._changed:
            self._left = True
            self._changed.notify_all()

    def _is_free(self, number: int) -> bool:
        of_it = self._alive[number]
        if number == self._turn and not of_it:
            return True
        return of_it < _OF_ONE and self._alive.total() < self._most


@contextmanager
def running_ahead(
    items: Iterable[T],
    parts: Callable[[T], Generator[U, None, None]],
    *,
    threads: int,
    patience_s: float | None = None,
    name: str = "ahead",
) -> Iterator[Iterator[tuple[T, U]]]:
    """Give an iterator over `(item, part)` for each part of each item, in order.

        with running_ahead(rows, decode, threads=4) as windows:
            for row, window in windows: ...

    The parts of `threads` items are made at a time, beginning when the block is entered. At most `threads +
    ALIVE_MORE` parts are alive: being made, waiting, or the one given last. An error of `parts` is raised in its
    turn, and `Standstill` where the next part does not come within `patience_s` of being asked for. Leaving
    the block ends the threads, but for one that stands still.
    """
    budget = _Budget(threads)
    pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
    # The pool begins items in order, so the one whose turn it is always runs or has run.
    waiting: list[tuple[T, SimpleQueue[U | _End]]] = [(item, SimpleQueue()) for item in items]
    for number, (item, queue) in enumerate(waiting):
        pool.submit(_fill, parts, number, item, queue, budget)
    standing = False
    try:
        yield _in_order(waiting, budget, patience_s)
    except Standstill:
        standing = True
        raise
    finally:
        budget.leave()
        pool.shutdown(wait=not standing, cancel_futures=True)


def _fill(
    parts: Callable[[T], Generator[U, None, None]],
    number: int,
    item: T,
    queue: SimpleQueue[U | _End],
    budget: _Budget,
) -> None:
    end = _End(None)
    try:
        with closing(parts(item)) as found:
            while budget.take(number):
                part = next(found)
                queue.put(part)
                del part  # or it would be alive when it is done with
    except StopIteration:
        pass
    except BaseException as error:
        end = _End(error)
    budget.give(number)  # of the part that there is not
    queue.put(end)


def _in_order(
    waiting: Sequence[tuple[T, SimpleQueue[U | _End]]], budget: _Budget, patience_s: float | None
) -> Iterator[tuple[T, U]]:
    for number, (item, queue) in enumerate(waiting):
        budget.turn(number)
        while True:
            try:
                entry = queue.get(timeout=patience_s)
            except Empty:
                raise Standstill(item) from None
            if isinstance(entry, _End):
                break
            yield item, entry
            del entry
            budget.give(number)
        if entry.error is not None:
            raise entry.error
