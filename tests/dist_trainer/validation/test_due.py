from __future__ import annotations

from typing import Any

import pytest

from dist_trainer.config import RunConfig
from dist_trainer.validation.due import is_due, times_due


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
    blocks = {"data": {"preprocessed_data_root": "d"}, "lora": {}, "optimization": {"steps": 5}}
    config = RunConfig.model_validate({**blocks, "validation": {"holdout": 0.1, **validation}})
    assert [step for step in range(6) if is_due(config, step)] == due
    assert times_due(config) == len(due)
