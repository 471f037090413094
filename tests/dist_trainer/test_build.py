from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dist_trainer.build import build_data, dtype_of
from dist_trainer.config import RunConfig
from dist_trainer.feed.data import run_state
from dist_trainer.world import World
from shards.dataset.opened import Dataset
from tests.support.datasets import SCALE
from tests.support.runs import lora_blocks, tiny_config


@pytest.fixture
def configured(model_folder: Path, paired_dataset: Dataset, tmp_path: Path) -> Any:
    """A function from blocks to the config of a run on the tiny model and the paired dataset."""

    def configure(**blocks: Any) -> RunConfig:
        return RunConfig.model_validate(tiny_config(model_folder, paired_dataset.root, tmp_path, **blocks))

    return configure


def build(config: RunConfig, dataset: Dataset) -> Any:
    return build_data(config, dataset, run_state(config, dataset, World(0, 1, 0), None))


@pytest.mark.parametrize(
    ("mode", "dtype"),
    [("bf16", torch.bfloat16), ("fp16", torch.bfloat16), ("no", torch.float32), (None, torch.float32)],
)
def test_what_the_model_computes_in(configured: Any, mode: str | None, dtype: torch.dtype) -> None:
    assert dtype_of(configured(acceleration={"mixed_precision_mode": mode})) == dtype


def test_the_recipe_is_that_of_config_and_dataset(configured: Any, paired_dataset: Dataset) -> None:
    config = configured(
        **lora_blocks(reference=True) | {"model": {"training_mode": "lora", "causal_positions": True}},
        seed=7,
        flow_matching={
            "timestep_sampling_mode": "uniform",
            "timestep_sampling_params": {"min_value": 0.25},
        },
    )
    feeding = build(config, paired_dataset).feeding
    recipe = feeding.recipe
    assert recipe.scale == SCALE
    assert (recipe.patch.temporal, recipe.patch.spatial) == (1, 1)
    assert (recipe.mode, recipe.first_frame_p, recipe.causal, recipe.seed) == (
        "reference_video",
        0.3,
        True,
        7,
    )
    sampling = recipe.sampling
    assert (sampling.mode, sampling.min_value, sampling.max_value) == ("uniform", 0.25, 1.0)
    assert (feeding.channels, feeding.text_width, feeding.weighting) == (8, 48, "sample")
