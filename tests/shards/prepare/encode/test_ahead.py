from __future__ import annotations

import threading
from collections.abc import Generator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.prepare.encode.ahead import running_ahead

WAIT_S = 20.0


@given(st.lists(st.integers(0, 5), max_size=12), st.integers(1, 4), st.integers(1, 3))
def test_parts_come_in_order_whatever_the_threads(counts: list[int], threads: int, room: int) -> None:
    items = list(enumerate(counts))
    with running_ahead(items, _count, threads=threads, room=room) as parts:
        found = list(parts)
    assert found == [(item, part) for item in items for part in range(item[1])]


def _count(item: tuple[int, int]) -> Generator[int, None, None]:
    yield from range(item[1])


def test_items_run_at_the_same_time_and_wait_with_their_buffers_full() -> None:
    made = [0, 0, 0]
    reached = threading.Barrier(3, timeout=WAIT_S)

    def endless(item: int) -> Generator[int, None, None]:
        while True:
            made[item] += 1
            if made[item] == 2:
                reached.wait()
            yield made[item]

    with running_ahead([0, 1, 2], endless, threads=2, room=1) as parts:
        reached.wait()
        assert next(parts) == (0, 1)
        assert made[2] == 0, "two threads begin two items"
    assert max(made) <= 3
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("ahead")]


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
