from __future__ import annotations

import os
from pathlib import Path

import pytest

from dist_trainer.checkpoints.kept import (
    complete_steps,
    is_of,
    prune,
    set_aside,
    steps_there,
    were_set_aside,
)
from tests.support.checkpoints import SHAPES, owned, state, write


@pytest.mark.parametrize(
    ("keep", "left"), [(-1, [1, 2, 3, 4]), (0, [1, 2, 3, 4]), (1, [4]), (3, [2, 3, 4]), (9, [1, 2, 3, 4])]
)
def test_pruning_keeps_the_newest_complete_ones(tmp_path: Path, keep: int, left: list[int]) -> None:
    for step in (1, 2, 3, 4):
        write(tmp_path, step, SHAPES, owned(state(SHAPES), 1))
    # What is not complete neither counts among the kept nor is taken for a checkpoint.
    (tmp_path / "step_000009").mkdir()
    prune(tmp_path, keep, good=4)
    assert complete_steps(tmp_path) == left
    assert sorted(path.name for path in tmp_path.glob("*step_*")) == [
        *[f"step_{step:06d}" for step in left],
        "step_000009",
    ]


def test_steps_sort_as_numbers(tmp_path: Path) -> None:
    for step in (999_999, 1_000_000, 5):
        write(tmp_path, step, SHAPES, owned(state(SHAPES), 1))
    assert complete_steps(tmp_path) == [5, 999_999, 1_000_000]


def test_pruning_never_deletes_the_one_just_saved(tmp_path: Path) -> None:
    """Somebody put newer ones there while the run trained."""
    for step in (2, 4, 90, 95):
        write(tmp_path, step, SHAPES, owned(state(SHAPES), 1))
    prune(tmp_path, 1, good=4)
    assert complete_steps(tmp_path) == [4, 95]


def test_a_damaged_one_gets_a_name_that_is_free(tmp_path: Path) -> None:
    for name in ("damaged_step_000004", "damaged_step_000004_2"):
        write(tmp_path, 4, SHAPES, owned(state(SHAPES), 1))
        assert set_aside(tmp_path, 4).name == name
        assert steps_there(tmp_path) == []
    assert were_set_aside(tmp_path) == ["damaged_step_000004", "damaged_step_000004_2"]


def test_what_was_made_of_a_checkpoint_is_not_of_a_later_one_with_its_name(tmp_path: Path) -> None:
    made, marker = tmp_path / "made", tmp_path / "step_000004" / "checkpoint.json"
    assert not is_of(made, marker.parent)
    made.touch()
    assert is_of(made, marker.parent), "it has outlived its checkpoint"
    write(tmp_path, 4, SHAPES, owned(state(SHAPES), 1))
    for age, expected in ((10, True), (0, True), (-10, False)):
        at = marker.stat().st_mtime_ns + age * 10**9
        os.utime(made, ns=(at, at))
        assert is_of(made, marker.parent) == expected
