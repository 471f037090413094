"""Promise 1: a step is a property of the run, not of the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.dataset.opened import Dataset
from tests.support.forked import several
from tests.support.runs import lora_blocks, losses, tiny_config, trained, write_config

STEPS, FEWER = 20, 8

SGD = {"optimizer_type": "sgd"}
# Adam divides by the square root of tiny second moments: where a gradient is nearly zero, float32's rounding (6e-8
# relative, summed in another order on other ranks) can turn an update of size lr. Losses after 20 steps of size lr
# then differ by about lr times the share of such weights; ten times what SGD keeps covers it with room.
ADAM = {"optimizer_type": "adamw", "learning_rate": 1e-3}

RUNS: dict[str, dict[str, Any]] = {
    "sgd": {"optimization": SGD, "conditioning": {"first_frame_conditioning_p": 0.5}},
    "adamw": {"optimization": ADAM, "conditioning": {"first_frame_conditioning_p": 0.5}},
    "ic_lora": {**lora_blocks(reference=True), "optimization": {**SGD, "learning_rate": 0.05}},
    "token_weighted": {
        "optimization": SGD,
        "batching": {"samples_per_step": None, "tokens_per_step": 300, "loss_weighting": "token"},
    },
    # Two samples on four processes: two of them have nothing to train.
    "few": {"optimization": SGD, "batching": {"samples_per_step": 2}},
    "similar": {"optimization": SGD, "batching": {"mix": "similar"}},
}
LONG = ("sgd", "adamw")
BOUNDS = dict.fromkeys(RUNS, 1e-5) | {"adamw": 1e-4}


def steps_of(name: str) -> int:
    return STEPS if name in LONG else FEWER


@pytest.fixture(scope="module")
def runs(model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every run on 1, 2 and 4 processes, and the first one with other packs, below one folder."""
    root = tmp_path_factory.mktemp("worlds")

    def config(folder: str, blocks: dict[str, Any], steps: int) -> Path:
        blocks = {**blocks, "optimization": {"steps": steps, **blocks.get("optimization", {})}}
        described = tiny_config(model_folder, paired_dataset.root, root / folder, **blocks)
        return write_config(root / f"{folder}.yaml", described)

    for size in (1, 2, 4):
        configs = [config(f"{name}_{size}", blocks, steps_of(name)) for name, blocks in RUNS.items()]
        if size == 1:
            # 24 tokens is the longest sample: no two large ones share a pack. 1000: a step is one pack.
            for cap in (24, 1000):
                batching = {"samples_per_step": 7, "max_tokens_per_pack": cap}
                configs.append(config(f"cap_{cap}", {**RUNS["sgd"], "batching": batching}, STEPS))
        several(size, *configs, logs=root / f"logs_{size}")
    return root


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", RUNS)
def test_losses_do_not_depend_on_the_number_of_processes(runs: Path, name: str) -> None:
    alone = losses(runs / f"{name}_1")
    assert len(alone) == steps_of(name)
    for size in (2, 4):
        np.testing.assert_allclose(losses(runs / f"{name}_{size}"), alone, rtol=BOUNDS[name])


@pytest.mark.parametrize("name", RUNS)
def test_each_step_trains_the_same_samples_on_any_number_of_processes(runs: Path, name: str) -> None:
    alone = trained(runs / f"{name}_1")
    assert alone == trained(runs / f"{name}_2") == trained(runs / f"{name}_4")


def test_training_moves_the_loss(runs: Path) -> None:
    """Equal losses would prove nothing if the weights stood still: the same data must score differently later."""
    first, last = losses(runs / "sgd_1")[:5], losses(runs / "sgd_1")[-5:]
    assert np.mean(last) < 0.95 * np.mean(first)


def test_the_cap_and_the_packing_do_not_move_the_losses(runs: Path) -> None:
    reference = losses(runs / "sgd_1")
    for cap in (24, 1000):
        np.testing.assert_allclose(losses(runs / f"cap_{cap}"), reference, rtol=1e-5)


def test_the_caps_really_gave_different_packs(runs: Path) -> None:
    from tests.support.runs import lines

    micro_steps = [
        [record["pack/micro_steps"] for record in lines(runs / f"cap_{cap}" / "metrics.jsonl")]
        for cap in (24, 1000)
    ]
    assert min(micro_steps[0]) > 1
    assert max(micro_steps[1]) == 1
