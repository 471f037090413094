from __future__ import annotations

import time

import pytest

from dist_trainer.watch.stillness import Stillness


class Clock:
    """A clock that a test moves."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = 100.0
        monkeypatch.setattr(time, "monotonic", lambda: self._now)

    def pass_by(self, seconds: float, still: Stillness) -> None:
        self._now += seconds
        still.tick()


def test_what_does_not_change_gets_older_and_a_change_makes_it_new(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, still = Clock(monkeypatch), Stillness(longest_s=6)
    assert still.seconds("a", 1) == 0
    clock.pass_by(2, still)
    assert [still.seconds("a", 1), still.seconds("b", 1)] == [2, 0]
    clock.pass_by(3, still)
    assert [still.seconds("a", 2), still.seconds("b", 1)] == [0, 3]


def test_time_in_which_this_process_was_stopped_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, still = Clock(monkeypatch), Stillness(longest_s=6)
    still.seconds("a", 1)
    clock.pass_by(3600, still)
    assert still.seconds("a", 1) == 6
