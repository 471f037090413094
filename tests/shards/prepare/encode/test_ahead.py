from __future__ import annotations

import threading
import time
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.prepare.encode.ahead import ALIVE_MORE, Standstill, running_ahead
from tests.support.jobs import until

WAIT_S = 20.0


@given(st.lists(st.integers(0, 5), max_size=12), st.integers(1, 4))
def test_parts_come_in_order_whatever_the_threads(counts: list[int], threads: int) -> None:
    items = list(enumerate(counts))
    with running_ahead(items, _count, threads=threads) as parts:
        found = list(parts)
    assert found == [(item, part) for item in items for part in range(item[1])]


def _count(item: tuple[int, int]) -> Generator[int, None, None]:
    yield from range(item[1])


class Part:
    """A part that says how many there are."""

    alive = 0
    most = 0
    lock = threading.Lock()

    def __init__(self) -> None:
        with Part.lock:
            Part.alive += 1
            Part.most = max(Part.most, Part.alive)

    def __del__(self) -> None:
        with Part.lock:
            Part.alive -= 1


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_few_parts_are_alive_however_slow_their_use(threads: int) -> None:
    Part.most = 0

    def several(item: int) -> Generator[Part, None, None]:
        for _ in range(4):
            yield Part()

    with running_ahead(range(12), several, threads=threads) as parts:
        until(lambda: Part.alive == threads + 1)
        count = 0
        for _, part in parts:
            count += 1
            time.sleep(0.002)
            del part
    assert count == 48
    assert threads + 1 <= Part.most <= threads + ALIVE_MORE
    assert Part.alive == 0
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


def test_items_run_at_the_same_time() -> None:
    reached = threading.Barrier(3, timeout=WAIT_S)

    def once(item: int) -> Generator[int, None, None]:
        if item < 2:
            reached.wait()
        yield item

    with running_ahead([0, 1, 2], once, threads=2) as parts:
        reached.wait()
        assert [part for _, part in parts] == [0, 1, 2]


def test_an_item_of_which_nothing_comes_is_named_and_not_waited_for() -> None:
    go = threading.Event()

    def parts_of(item: str) -> Generator[str, None, None]:
        yield item
        if item == "b":
            go.wait(WAIT_S)

    began = time.monotonic()
    found = []
    with (
        pytest.raises(Standstill, match="nothing comes of b"),
        running_ahead("abc", parts_of, threads=2, patience_s=0.2) as parts,
    ):
        found.extend(part for _, part in parts)
    assert time.monotonic() - began < WAIT_S / 2
    go.set()


def test_an_error_comes_in_its_turn() -> None:
    def parts_of(item: int) -> Generator[int, None, None]:
        yield item
        if item == 1:
            raise ValueError("broken")

    with running_ahead(range(4), parts_of, threads=3) as parts:
        assert [next(parts), next(parts)] == [(0, 0), (1, 1)]
        with pytest.raises(ValueError, match="broken"):
            next(parts)


def test_leaving_early_closes_what_runs() -> None:
    closed = threading.Event()

    def endless(item: int) -> Generator[int, None, None]:
        try:
            while True:
                yield item
        finally:
            closed.set()

    with running_ahead(range(100), endless, threads=1) as parts:
        assert next(parts) == (0, 0)
    assert closed.is_set()
