"""The end of the job's time ends a look at the model, also before a save has told how long one takes."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from dist_trainer.stop import Requests, Wish
from dist_trainer.validation.asked import asked


@pytest.mark.parametrize(
    ("left_s", "stepped", "wish"),
    [
        # A save is guessed to take 150 s, and twice that and a margin of 30 s are left for it.
        (320, True, Wish.COME_BACK),
        (400, True, Wish.NONE),
        # Before the first step of a launch there is nothing to save: a short job should not give up at once.
        (100, False, Wish.SAVE),
        (20, False, Wish.COME_BACK),
    ],
)
def test_a_look_ends_for_a_save_of_the_steps_before_it(
    alone: None, tmp_path: Path, left_s: float, stepped: bool, wish: Wish
) -> None:
    requests = Requests(tmp_path, is_main=True, ends_at=time.time() + left_s)
    if stepped:
        requests.stepped(1.0)
    assert asked(requests, torch.device("cpu")) is wish


def test_a_stop_for_good_is_heard_before_the_jobs_end(alone: None, tmp_path: Path) -> None:
    (tmp_path / "STOP").touch()
    assert asked(Requests(tmp_path, True, time.time()), torch.device("cpu")) is Wish.STOP
