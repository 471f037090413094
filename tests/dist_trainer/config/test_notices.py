"""What is accepted but not acted on is said, and what may cost the run; nothing else is."""

from __future__ import annotations

from typing import Any

import pytest

from dist_trainer.config import RunConfig, notices


def build(**blocks: Any) -> RunConfig:
    quiet = {
        "data": {"preprocessed_data_root": "d"},
        "lora": {},
        "acceleration": {"compile_with_inductor": False},
        "checkpoints": {"interval": 250},
    }
    return RunConfig.model_validate({**quiet, **blocks})


def compiling(**acceleration: Any) -> dict[str, Any]:
    return {"acceleration": {"compile_with_inductor": False, **acceleration}}


@pytest.mark.parametrize(
    ("blocks", "key"),
    [
        ({"acceleration": {}}, "acceleration.compile_with_inductor"),
        (compiling(quantization="int8-quanto"), "acceleration.quantization"),
        ({"deepspeed": {"timeout_minutes": 10}}, "deepspeed.timeout_minutes"),
        (compiling(mixed_precision_mode="fp16"), "acceleration.mixed_precision_mode"),
        ({"deepspeed": {"stage": 0}}, "deepspeed.stage"),
        ({"model": {"training_mode": "full"}}, "lora"),
        ({"lora": {"dropout": 0.1}}, "lora.dropout"),
        ({"optimization": {"optimizer_type": "adamw8bit"}}, "optimization.optimizer_type"),
        ({"optimization": {"optimizer_type": "sgd", "eps": 1e-6}}, "optimization.eps"),
        ({"optimization": {"batch_size": 1}, "batching": {"samples_per_step": 4}}, "optimization.batch_size"),
        (
            {"optimization": {"gradient_accumulation_steps": 2}, "batching": {"tokens_per_step": 4}},
            "optimization.gradient_accumulation_steps",
        ),
        (
            {"validation": {"prompts": ["a"], "reference_videos": ["a.mp4"]}},
            "validation.reference_videos",
        ),
        ({"validation": {"holdout_interval": 5}}, "validation.holdout_interval"),
        ({"checkpoints": {"interval": None}}, "checkpoints.interval"),
        (
            {
                "conditioning": {"mode": "reference_video", "reference_latents_dir": "refs"},
                "validation": {"reference_videos": []},
            },
            "conditioning.reference_latents_dir",
        ),
    ],
)
def test_one_line_for_one_key(blocks: dict[str, Any], key: str) -> None:
    (line,) = notices(build(**blocks))
    assert line.startswith(f"{key}: ")
    assert "\n" not in line


@pytest.mark.parametrize(
    "blocks",
    [
        {},
        {"validation": {"prompts": ["a"]}},
        compiling(load_text_encoder_in_8bit=True),
        {"conditioning": {"reference_latents_dir": "refs"}},
        {"optimization": {"batch_size": 7}},
        {"model": {"training_mode": "full"}, "lora": None},
        compiling(quantization="no_change", mixed_precision_mode="no"),
        {"wandb": {"project": "p"}, "hub": {"hub_model_id": "me/mine"}},
        {"checkpoints": {"interval": None}, "optimization": {"steps": 100}},
    ],
)
def test_values_without_effect_are_not_mentioned(blocks: dict[str, Any]) -> None:
    assert notices(build(**blocks)) == []
