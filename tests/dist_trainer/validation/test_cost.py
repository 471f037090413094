"""What the held-out loss costs, told by counting samples where all are of one size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.config import RunConfig
from dist_trainer.validation.cost import HeldoutCost, heldout_cost
from shards.dataset.opened import Dataset
from shards.efficiency import report
from shards.geometry import UNIT_PATCH
from shards.plan import Batching, Plan
from tests.support.datasets import write_dataset
from tests.support.runs import lora_blocks

SIZE = (2, 4, 4)  # 32 tokens
IC_LORA = lora_blocks(reference=True)


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """24 samples of one size, with references of that size."""
    return write_dataset(tmp_path_factory.mktemp("alike"), 24, grids=[SIZE], references=[SIZE])


def cost(dataset: Dataset, measured: Dataset | None = None, **settings: Any) -> HeldoutCost:
    """Of a run that trains `dataset` in steps of eight samples, and holds out `measured`, or as many."""
    ranks, cap, quadratic = (
        settings.pop(name, default) for name, default in (("ranks", 1), ("cap", 64), ("quadratic", 0.0))
    )
    blocks = {"data": {"preprocessed_data_root": "d"}, "lora": {}, "optimization": {"steps": 100}, **settings}
    config = RunConfig.model_validate(blocks)
    manifest, batching = dataset.manifest, Batching(8, None)
    tokens = manifest.target_tokens() if config.conditioning.mode == "none" else manifest.tokens()
    (packing,) = report(tokens, manifest.ids, batching, [ranks], cap, quadratic)
    plan = Plan(manifest.ids, tokens, batching, 0)
    return heldout_cost(config, measured or dataset, plan, UNIT_PATCH, quadratic, cap, packing)


def holding(samples: int, interval: int | None = 50, **more: Any) -> dict[str, Any]:
    return {"holdout": 0.5, "holdout_samples": samples, "holdout_interval": interval, **more}


def test_each_sample_is_one_forward_pass_a_noise_level(alike: Dataset) -> None:
    found = cost(alike, validation=holding(6))
    assert (found.held_out, found.measured, found.references, found.weights) == (24, 6, 1, 1)
    assert found.steps == pytest.approx(6 * 4 / 8)
    # Before the first of 100 steps, after the 50th and after the last one.
    assert found.share == pytest.approx(3 * found.steps / 100)
    assert found.notes == ()


def test_a_running_mean_and_references_take_their_own(alike: Dataset) -> None:
    optimization = {"steps": 100, "ema_decay": 0.9}
    found = cost(
        alike,
        **{**IC_LORA, "validation": {**IC_LORA["validation"], **holding(6)}, "optimization": optimization},
    )
    assert (found.references, found.weights) == (3, 2)
    # Without its reference a sample is half as long.
    assert found.steps == pytest.approx(2 * 2.5 * 6 * 4 / 8)
    assert str(found) == (
        "held out: 24 samples, never trained; every 50 steps their loss is measured, 6 samples x 4 noise levels x "
        "3 kinds of reference x 2 (weights and their running mean): as long as the forward passes of 15.00 steps"
    )


def test_attention_makes_a_sample_with_its_reference_dearer_than_two_without(alike: Dataset) -> None:
    validation = {**IC_LORA["validation"], **holding(6)}
    found = cost(alike, quadratic=1.0, **{**IC_LORA, "validation": validation})
    alone = (32 + 32**2) / (64 + 64**2)
    assert found.steps == pytest.approx((2 + alone) * 6 * 4 / 8, rel=1e-6)


def test_ranks_that_have_nothing_to_measure_wait(alike: Dataset) -> None:
    """One sample at four levels on eight ranks lasts as long as one sample does, and so does the step."""
    assert cost(alike, ranks=8, validation=holding(1)).steps == pytest.approx(1.0)
    assert cost(alike, ranks=2, validation=holding(1)).steps == pytest.approx(2 / 4)


def test_what_takes_over_a_fifth_of_trainings_forward_passes_is_said(alike: Dataset) -> None:
    (note,) = cost(alike, validation=holding(6, interval=10)).notes
    assert note.startswith("validation.holdout_samples: measuring the held-out loss takes 33% of the time")
    assert "holdout_interval" in note
    assert cost(alike, validation=holding(6, interval=20)).notes == ()
    once = cost(
        alike, validation=holding(24, interval=None) | {"interval": None, "skip_initial_validation": True}
    )
    assert once.share == pytest.approx(24 * 4 / 8 / 100)
    assert "at both ends of the run" in str(once)


def test_a_sample_longer_than_a_pack_of_training_is_said(alike: Dataset, tmp_path: Path) -> None:
    longer = write_dataset(tmp_path, 2, grids=[(2, 4, 6)])
    assert cost(alike, longer, cap=48, validation=holding(2)).notes == ()
    (note,) = cost(alike, longer, cap=40, validation=holding(2)).notes
    assert "the longest sample measured has 48 tokens, more than the 40 of a pack of training" in note


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        (
            [(1, 2, 2), (1, 2, 2), (1, 4, 4)],
            "1 of the measured samples .*heldout/reference_\\* leave them out",
        ),
        ([(1, 2, 2), (1, 4, 4)], "2 of the measured samples .*heldout/reference_shuffled is left out"),
    ],
)
def test_references_that_no_other_sample_can_lend_are_said(
    tmp_path: Path, sizes: list[Any], said: str
) -> None:
    dataset = write_dataset(tmp_path, len(sizes), grids=sizes, references=sizes)
    validation = {**IC_LORA["validation"], **holding(64)}
    settings = {**IC_LORA, "validation": validation, "optimization": {"steps": 1000}}
    (note,) = cost(dataset, **settings).notes
    assert re.search(said, note)
