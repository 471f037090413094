"""How far this process has come: marks for the watch to read. A process is one rank, so they are global."""

from __future__ import annotations

from typing import NamedTuple


class Place(NamedTuple):
    """Step and micro-step, both from 1 (0: before), what is done outside of them, and two counts that only grow.

    `marks` grows alike on all ranks, so that the lowest is behind; `moves` with every sign of life.
    """

    step: int = 0
    micro: int = 0
    doing: str = "the start"
    marks: int = 0
    moves: int = 0

    def __str__(self) -> str:
        reached = f"step {self.step}, micro-step {self.micro}"
        if not self.doing:
            return reached
        return f"{self.doing} after {reached}" if self.step else self.doing


_now = Place()


def now() -> Place:
    """The newest mark."""
    return _now


def at(step: int, micro: int) -> None:
    """Mark that a micro-step begins."""
    global _now
    _now = Place(step, micro, "", _now.marks + 1, _now.moves + 1)


def doing(what: str) -> None:
    """Mark that work outside of micro-steps begins, in words that follow `in`; every rank marks it."""
    global _now
    _now = _now._replace(doing=what, marks=_now.marks + 1, moves=_now.moves + 1)


def moved() -> None:
    """Mark that long work goes on: a file, a tensor. Without it, time counts as standing still."""
    global _now
    _now = _now._replace(moves=_now.moves + 1)
