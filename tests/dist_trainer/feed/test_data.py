"""What a run trains: told, or refused, from its config, its dataset and its model's config.json alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_trainer.config import RunConfig
from dist_trainer.feed.data import Planned, make_plan, open_data, run_state
from dist_trainer.world import World
from shards.dataset.opened import Dataset
from shards.errors import InputError
from tests.support.datasets import GRIDS, write_dataset
from tests.support.runs import lora_blocks, tiny_config

LONGEST = 24  # tokens of the largest of GRIDS, without its reference
ALONE = World(0, 1, 0)


@pytest.fixture
def configured(model_folder: Path, paired_dataset: Dataset, tmp_path: Path) -> Any:
    """A function from blocks to the config of a run on the tiny model and the paired dataset."""

    def configure(**blocks: Any) -> RunConfig:
        return RunConfig.model_validate(tiny_config(model_folder, paired_dataset.root, tmp_path, **blocks))

    return configure


def plan(config: RunConfig, dataset: Dataset) -> Planned:
    return make_plan(config, dataset, run_state(config, dataset, ALONE, None))


@pytest.mark.parametrize(
    ("batching", "world", "expected"),
    [
        ({"samples_per_step": 9}, 4, (9, None)),
        ({"samples_per_step": None, "tokens_per_step": 500}, 4, (None, 500)),
        # LTX-Video-Trainer's way: batch_size * gradient_accumulation_steps * processes.
        ({"samples_per_step": None}, 1, (6, None)),
        ({"samples_per_step": None}, 4, (24, None)),
    ],
)
def test_a_step_is_sized_at_the_first_launch(
    configured: Any, paired_dataset: Dataset, batching: dict[str, Any], world: int, expected: tuple[Any, Any]
) -> None:
    config = configured(batching=batching, optimization={"batch_size": 2, "gradient_accumulation_steps": 3})
    state = run_state(config, paired_dataset, World(0, world, 0), None)
    assert (state.samples_per_step, state.tokens_per_step) == expected


def test_a_size_the_config_leaves_open_stays_that_of_the_first_launch(
    configured: Any, paired_dataset: Dataset
) -> None:
    config = configured(batching={"samples_per_step": None}, optimization={"batch_size": 2})
    first = run_state(config, paired_dataset, World(0, 4, 0), None)
    assert first.samples_per_step == 8
    for size in (1, 2, 16):
        assert run_state(config, paired_dataset, World(0, size, 0), first) == first
    by_tokens = replace(first, samples_per_step=None, tokens_per_step=300)
    assert run_state(config, paired_dataset, ALONE, by_tokens) == by_tokens


def test_a_size_the_config_gives_stands_above_the_first_launch(
    configured: Any, paired_dataset: Dataset
) -> None:
    first = run_state(configured(batching={"samples_per_step": 8}), paired_dataset, ALONE, None)
    now = run_state(configured(batching={"samples_per_step": 9}), paired_dataset, ALONE, first)
    assert now.samples_per_step == 9


def test_the_state_is_that_of_config_and_dataset(configured: Any, paired_dataset: Dataset) -> None:
    config = configured(
        **lora_blocks(reference=True),
        seed=7,
        batching={"samples_per_step": 5, "mix": "similar", "loss_weighting": "token"},
    )
    state = run_state(config, paired_dataset, ALONE, None)
    assert state.seed == 7
    assert (state.mix, state.loss_weighting) == ("similar", "token")
    assert (state.training_mode, state.conditioning_mode) == ("lora", "reference_video")
    assert state.model_source == config.model.model_source
    assert state.dataset == paired_dataset.manifest.fingerprint


def test_references_count_only_where_they_are_trained_on(configured: Any, paired_dataset: Dataset) -> None:
    manifest = paired_dataset.manifest
    plain = plan(configured(), paired_dataset)
    assert np.array_equal(plain.plan.tokens, manifest.target_tokens())
    assert plain.plan.tokens.max() == LONGEST
    paired = plan(configured(**lora_blocks(reference=True)), paired_dataset)
    assert np.array_equal(paired.plan.tokens, manifest.tokens())
    assert (paired.plan.tokens == 2 * plain.plan.tokens).all()


@pytest.mark.parametrize(("batching", "cap"), [({}, 2 * LONGEST), ({"max_tokens_per_pack": 40}, 40)])
def test_the_cap_is_the_users_or_twice_the_longest_sample(
    configured: Any, paired_dataset: Dataset, batching: dict[str, Any], cap: int
) -> None:
    config = configured(batching=batching)
    assert plan(config, paired_dataset).cap == cap


@pytest.mark.parametrize(
    ("written", "blocks", "message"),
    [
        ({"channels": 4}, {}, "latents have 4 channels, the transformer of .* takes 8; encode .* VAE"),
        ({"text_width": 16}, {}, "embeddings are 16 wide, the transformer of .* takes 48; encode .* text"),
        (
            {},
            lora_blocks(reference=True),
            r"reference_video, but 8 of 8 samples have no reference \(clips/sample_00000, .*reference_path",
        ),
        (
            {"references": (GRIDS[0], None, None, GRIDS[3])},
            lora_blocks(reference=True),
            r"but 4 of 8 samples have no reference \(clips/sample_00001, clips/sample_00002, clips/sample_00005",
        ),
        (
            {"grids": [(3, 4, 4)], "references": [(3, 4, 4), (2, 4, 4), (3, 3, 4), (1, 2, 2)]},
            lora_blocks(reference=True),
            r"references of 2 of 8 samples \(clips/sample_00002, clips/sample_00006\) .*doctor .* --repair",
        ),
        (
            {},
            {"batching": {"max_tokens_per_pack": 20}},
            r"the cap, 20.*clips/sample_00001 \(24 tokens\).*max_tokens_per_pack",
        ),
        ({}, {"batching": {"samples_per_step": None, "tokens_per_step": 20}}, "tokens_per_step"),
    ],
    ids=[
        "channels",
        "text-width",
        "no-references",
        "some-references",
        "odd-references",
        "cap",
        "tokens-per-step",
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_loaded(
    configured: Any, tmp_path: Path, written: dict[str, Any], blocks: dict[str, Any], message: str
) -> None:
    dataset = write_dataset(tmp_path / "data", **{"channels": 8, "text_width": 48, **written})
    with pytest.raises(InputError, match=message) as caught:
        plan(configured(**blocks), dataset)
    assert "\n" not in str(caught.value)


def test_the_dataset_is_the_one_the_config_names(configured: Any, paired_dataset: Dataset) -> None:
    assert open_data(configured()).manifest.fingerprint == paired_dataset.manifest.fingerprint


def test_a_dataset_that_is_not_there_is_named(configured: Any, tmp_path: Path) -> None:
    config = configured(data={"preprocessed_data_root": str(tmp_path / "absent")})
    with pytest.raises(InputError, match=str(tmp_path / "absent")):
        open_data(config)
