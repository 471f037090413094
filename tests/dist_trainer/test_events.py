from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from dist_trainer.begun import Begun
from dist_trainer.config import RunConfig
from dist_trainer.events import open_events
from dist_trainer.figures.metrics import StepMetrics
from dist_trainer.rundir import RunFolder
from dist_trainer.skipped import NORM, Skipped
from dist_trainer.stop import Wish


class Counted:
    """A running mean that counts its updates."""

    updates = 0

    def update(self) -> None:
        self.updates += 1


def begun(folder: Path, ema: Any) -> Begun:
    config = RunConfig.model_validate({"data": {"preprocessed_data_root": "d"}, "lora": {}})
    unused = cast("Any", None)
    return Begun(config, unused, unused, ema, RunFolder(folder), None, unused, unused, 0)


def test_a_skipped_step_is_no_update_of_the_running_mean(tmp_path: Path) -> None:
    ema = Counted()
    events = open_events(begun(tmp_path, ema), [])
    for step, skipped in ((1, None), (2, Skipped(2, NORM, [1], ["a"])), (3, None)):
        events.on_step(StepMetrics(step, [0], [1], {}, skipped=skipped))
    assert ema.updates == 2


@pytest.mark.parametrize(
    ("wishes", "asked", "found"),
    [
        ([Wish.NONE, Wish.NONE], 2, Wish.NONE),
        ([Wish.STOP, Wish.NONE], 1, Wish.STOP),
        ([Wish.NONE, Wish.COME_BACK], 2, Wish.COME_BACK),
    ],
)
def test_looks_at_the_model_follow_each_other_until_one_is_asked_to_stop(
    tmp_path: Path, wishes: list[Wish], asked: int, found: Wish
) -> None:
    looked: list[int] = []

    def look(number: int) -> Any:
        return lambda step: (looked.append(step), wishes[number])[1]

    events = open_events(begun(tmp_path, None), [look(0), look(1)])
    assert events.on_validate(0) is found
    assert looked == [0] * asked
