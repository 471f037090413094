from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.config import RunConfig
from dist_trainer.model.deepspeed_config import deepspeed_config
from tests.support.runs import tiny_config


def described(on_gpu: bool = False, **blocks: Any) -> dict[str, Any]:
    values = tiny_config(Path("model"), Path("data"), Path("run"))
    values.pop("deepspeed")
    return deepspeed_config(RunConfig.model_validate({**values, **blocks}), on_gpu)


# The tiny config computes in float32.
@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_the_stage_is_the_configs(stage: int) -> None:
    assert described(deepspeed={"stage": stage})["zero_optimization"]["stage"] == stage


@pytest.mark.parametrize(("stage", "expected"), [(0, 1), (1, 1), (2, 2), (3, 3)])
def test_in_bf16_stage_0_runs_as_stage_1(stage: int, expected: int) -> None:
    config = described(deepspeed={"stage": stage}, acceleration={"mixed_precision_mode": "bf16"})
    assert config["zero_optimization"]["stage"] == expected


def test_zero_3_is_the_default() -> None:
    assert described()["zero_optimization"]["stage"] == 3


def test_the_plan_alone_decides_on_batches() -> None:
    blocks: dict[str, Any] = {
        "optimization": {"batch_size": 4, "gradient_accumulation_steps": 8},
        "batching": {"samples_per_step": 64},
    }
    config = described(**blocks)
    assert config["train_micro_batch_size_per_gpu"] == config["gradient_accumulation_steps"] == 1
    assert "train_batch_size" not in config
    assert "optimizer" not in config
    assert "scheduler" not in config


@pytest.mark.parametrize("norm", [0.0, 0.5, 1])
def test_clipping_is_the_configs(norm: float) -> None:
    clipping = described(optimization={"max_grad_norm": norm})["gradient_clipping"]
    assert (clipping, type(clipping)) == (norm, float)


@pytest.mark.parametrize(("mode", "bf16"), [("bf16", True), ("fp16", True), ("no", False), (None, False)])
def test_bf16_sums_its_gradients_in_float32(mode: str | None, bf16: bool) -> None:
    config = described(acceleration={"mixed_precision_mode": mode})
    assert config["bf16"]["enabled"] == bf16
    assert config.get("data_types") == ({"grad_accum_dtype": "fp32"} if bf16 else None)
    assert "fp16" not in config


@pytest.mark.parametrize("on_gpu", [True, False])
def test_offloading_pins_memory_where_there_is_a_gpu(on_gpu: bool) -> None:
    zero = described(on_gpu, deepspeed={"offload_optimizer": "cpu", "offload_param": "cpu"})[
        "zero_optimization"
    ]
    assert zero["offload_optimizer"] == zero["offload_param"] == {"device": "cpu", "pin_memory": on_gpu}
    assert zero["overlap_comm"] == on_gpu


def test_nothing_is_offloaded_unless_asked_for() -> None:
    zero = described()["zero_optimization"]
    assert "offload_optimizer" not in zero
    assert "offload_param" not in zero


def test_the_users_own_keys_are_laid_over_ours_and_take_nothing_else_away() -> None:
    own: dict[str, Any] = {
        "zero_optimization": {"stage3_param_persistence_threshold": 7, "overlap_comm": True},
        "comms_logger": {"enabled": True},
        "steps_per_print": 5,
    }
    plain, config = described(), described(deepspeed={"config": own})
    assert config["zero_optimization"] == {**plain["zero_optimization"], **own["zero_optimization"]}
    assert config["comms_logger"] == {"enabled": True}
    assert config["steps_per_print"] == 5
    assert config.keys() == plain.keys() | {"comms_logger"}


# Nothing is sharded at stage 0, so nothing is offloaded.
@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("mode", ["bf16", None])
@pytest.mark.parametrize(("stage", "offload"), [(0, "none"), *product([1, 2, 3], ["none", "cpu"])])
def test_deepspeed_reads_it(stage: int, mode: str | None, offload: str) -> None:
    from deepspeed.runtime.config import DeepSpeedConfig

    blocks = {"stage": stage, "offload_optimizer": offload}
    read = DeepSpeedConfig(described(deepspeed=blocks, acceleration={"mixed_precision_mode": mode}))
    assert read.zero_config.stage == (max(stage, 1) if mode else stage)
    assert read.gradient_clipping == 1.0
    assert read.bfloat16_config.enabled == (mode == "bf16")
    assert (read.train_batch_size, read.gradient_accumulation_steps) == (1, 1)
    assert (read.zero_config.offload_optimizer is not None) == (offload == "cpu")
