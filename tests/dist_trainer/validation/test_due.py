from __future__ import annotations

from typing import Any

import pytest

from dist_trainer.config import RunConfig
from dist_trainer.validation.due import heldout_due, heldout_times, videos_due, videos_wanted


def config(**validation: Any) -> RunConfig:
    blocks = {"data": {"preprocessed_data_root": "d"}, "lora": {}, "optimization": {"steps": 5}}
    return RunConfig.model_validate({**blocks, "validation": validation})


@pytest.mark.parametrize(
    ("validation", "due"),
    [
        ({"holdout_interval": 2}, [0, 2, 4, 5]),
        ({"holdout_interval": None, "interval": 3}, [0, 3, 5]),
        ({"holdout_interval": 4, "interval": 3, "skip_initial_validation": True}, [4, 5]),
        ({"holdout_interval": None, "interval": None}, [0, 5]),
    ],
)
def test_when_the_held_out_loss_is_measured(validation: dict[str, Any], due: list[int]) -> None:
    asked = config(holdout=0.1, **validation)
    assert [step for step in range(6) if heldout_due(asked, step)] == due
    assert heldout_times(asked) == len(due)


@pytest.mark.parametrize(
    ("validation", "due"),
    [
        ({"interval": 2}, [0, 2, 4, 5]),
        ({"interval": 2, "skip_initial_validation": True}, [2, 4, 5]),
        ({"interval": 100}, [0, 5]),
        ({"interval": 3, "holdout": 0.1, "holdout_interval": 2}, [0, 3, 5]),
        ({"interval": None}, []),
        ({"interval": 2, "prompts": []}, []),
    ],
)
def test_videos_are_due_before_the_first_step_at_each_interval_and_at_the_end(
    validation: dict[str, Any], due: list[int]
) -> None:
    asked = config(**{"prompts": ["a", "b"], "video_dims": [96, 64, 9], **validation})
    assert [step for step in range(6) if videos_due(asked, step)] == due
    assert videos_wanted(asked) == bool(due)
