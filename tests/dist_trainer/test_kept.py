from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.kept import complete_steps, prune
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
