from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.stream import stream


def alive(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(name)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), max_size=20), st.integers(1, 6), st.integers(1, 4))
def test_results_come_in_the_order_of_the_items(delays: list[int], depth: int, threads: int) -> None:
    def load(item: tuple[int, int]) -> int:
        time.sleep(item[1] * 1e-3)
        return item[0]

    with stream(enumerate(delays), load, depth, "order", threads) as results:
        assert list(results) == list(range(len(delays)))
    assert not alive("order")


def test_loading_runs_ahead_by_the_depth_and_no_further() -> None:
    pulled: list[int] = []

    def items() -> Iterator[int]:
        for number in itertools.count():
            pulled.append(number)
            yield number

    with stream(items(), lambda item: item, 3, "ahead") as results:
        assert next(results) == 0
        assert len(pulled) == 4
        assert next(results) == 1
        assert len(pulled) == 5


def test_an_item_is_loaded_while_the_consumer_works() -> None:
    second = threading.Event()

    def load(item: int) -> int:
        if item == 1:
            second.set()
        return item

    with stream(range(3), load, 1, "work") as results:
        assert next(results) == 0
        assert second.wait(5)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_error_of_loading_is_raised_in_its_turn(threads: int) -> None:
    def load(item: int) -> int:
        if item == 2:
            raise RuntimeError("shard 2")
        return item

    with stream(range(9), load, 4, "fails", threads) as results:
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(RuntimeError, match="shard 2"):
            next(results)
        assert list(results) == []
    assert not alive("fails")


def test_an_error_of_the_items_is_raised_in_its_turn() -> None:
    def items() -> Iterator[int]:
        yield 0
        yield 1
        raise RuntimeError("no more")

    with stream(items(), lambda item: item, 8, "items") as results:
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(RuntimeError, match="no more"):
            next(results)


def test_leaving_early_ends_the_threads_without_loading_the_rest() -> None:
    loaded: list[int] = []

    def load(item: int) -> int:
        loaded.append(item)
        time.sleep(0.01)
        return item

    with stream(itertools.count(), load, 50, "early") as results:
        next(results)
    assert not alive("early")
    assert len(loaded) < 10


def test_an_error_in_the_consumer_ends_the_threads() -> None:
    def consume() -> None:
        with stream(itertools.count(), lambda item: item, 4, "consumer") as results:
            next(results)
            raise KeyError

    with pytest.raises(KeyError):
        consume()
    assert not alive("consumer")


def test_a_stream_is_over_once_left() -> None:
    with stream(range(5), lambda item: item, 2, "over") as results:
        next(results)
    assert list(results) == []


@pytest.mark.parametrize(("depth", "threads"), [(0, 1), (1, 0)])
def test_counts_below_one_are_refused(depth: int, threads: int) -> None:
    with pytest.raises(ValueError, match="at least 1"), stream([], lambda item: item, depth, "no", threads):
        pass
