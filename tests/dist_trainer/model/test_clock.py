from __future__ import annotations

import time

import pytest
import torch

from dist_trainer.model.clock import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """A clock whose time only passes where `spend` is called."""
    monkeypatch.setattr(time, "perf_counter", lambda: _now[0])
    return Clock(torch.device("cpu"))


_now = [0.0]


def spend(seconds: float) -> None:
    _now[0] += seconds


def test_waits_are_not_counted_where_a_rank_computes(clock: Clock) -> None:
    wait = clock.without(spend)
    with clock.running():
        spend(3.0)
        wait(4.0)
        spend(1.0)
        wait(seconds=2.0)
    assert clock.take() == 4.0


def test_what_comes_outside_is_not_counted_at_all(clock: Clock) -> None:
    wait = clock.without(spend)
    with clock.running():
        spend(1.0)
    wait(5.0)
    spend(7.0)
    with clock.running():
        spend(0.5)
    assert clock.take() == 1.5


def test_each_step_counts_its_own(clock: Clock) -> None:
    with clock.running():
        spend(1.0)
    assert (clock.take(), clock.take()) == (1.0, 0.0)


def test_looking_at_the_model_is_no_training(clock: Clock) -> None:
    with torch.no_grad(), clock.running():
        spend(1.0)
    assert clock.take() == 0.0


def test_what_waits_gives_back_what_it_gave_and_raises_what_it_raised(clock: Clock) -> None:
    assert clock.without(lambda number: number + 1)(4) == 5
    with clock.running(), pytest.raises(ZeroDivisionError):
        clock.without(lambda: 1 / 0)()
    assert clock.take() == 0.0
