"""The schema: bounds, rules between keys, and what is derived from them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from dist_trainer.config import RunConfig
from dist_trainer.config.block import Block
from dist_trainer.config.training import RestartsParams, ShiftedLogitNormalSampling, UniformSampling


def build(**blocks: Any) -> RunConfig:
    return RunConfig.model_validate({"data": {"preprocessed_data_root": "d"}, "lora": {}, **blocks})


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model": {"model_source": "LTXV_2B_0.9.7"}}, "no such model version; did you mean LTXV_2B_0.9."),
    ({"model": {"model_source": ""}}, "at least 1 character"),
    ({"lora": None}, "lora: required when model.training_mode is lora"),
    ({"lora": {"rank": 1}}, "greater than or equal to 2"),
    ({"lora": {"alpha": 0}}, "greater than or equal to 1"),
    ({"lora": {"dropout": 1.1}}, "less than or equal to 1"),
    ({"lora": {"target_modules": []}}, "at least 1 item"),
    ({"conditioning": {"first_frame_conditioning_p": -0.1}}, "greater than or equal to 0"),
    (
        {"conditioning": {"mode": "reference_video"}},
        "validation.reference_videos: required when conditioning.mode",
    ),
    (
        {
            "conditioning": {"mode": "reference_video"},
            "validation": {"reference_videos": []},
            "model": {"training_mode": "full"},
        },
        "conditioning.mode reference_video needs lora",
    ),
    (
        {"validation": {"prompts": ["a", "b"], "images": ["x"]}},
        "validation.images: one for each of validation.prompts: 2",
    ),
    ({"validation": {"prompts": ["a"], "reference_videos": []}}, "validation.reference_videos: one for each"),
    ({"validation": {"guidance_scale": 0.9}}, "greater than or equal to 1"),
    ({"validation": {"interval": 0}}, "greater than 0"),
    ({"validation": {"video_dims": [1, 2]}}, "give width, height and frames"),
    ({"validation": {"video_dims": 512}}, "give width, height and frames"),
    ({"validation": {"video_dims": [1, 2, 0]}}, "greater than 0"),
    (
        {"acceleration": {"quantization": "int8-quanto"}, "model": {"training_mode": "full"}},
        "only frozen weights can be quantized",
    ),
    ({"optimization": {"steps": 0}}, "greater than 0"),
    ({"optimization": {"steps": 1.5}}, "valid integer"),
    ({"optimization": {"steps": True}}, "should be a number"),
    ({"optimization": {"batch_size": 0}}, "greater than 0"),
    ({"optimization": {"gradient_accumulation_steps": 0}}, "greater than 0"),
    ({"optimization": {"learning_rate": -1}}, "greater than or equal to 0"),
    ({"optimization": {"learning_rate": float("nan")}}, "finite number"),
    ({"optimization": {"max_grad_norm": float("inf")}}, "finite number"),
    ({"optimization": {"betas": [0.9, 1.0]}}, "less than 1"),
    ({"optimization": {"eps": 0}}, "greater than 0"),
    ({"optimization": {"steps": 10, "warmup_steps": 10}}, "must be below optimization.steps"),
    ({"optimization": {"scheduler_type": "step"}}, "should be 'constant'"),
    ({"optimization": {"scheduler_params": {"eta_min": 1}}}, "eta_min: unknown key"),
    (
        {"optimization": {"scheduler_type": "constant", "scheduler_params": {"power": 1}}},
        "power: unknown key",
    ),
    (
        {"optimization": {"scheduler_type": "polynomial", "scheduler_params": {"powr": 1}}},
        "did you mean power?",
    ),
    ({"optimization": {"scheduler_params": {"end_factor": 2}}}, "less than or equal to 1"),
    (
        {
            "optimization": {
                "scheduler_type": "cosine",
                "learning_rate": 1e-5,
                "scheduler_params": {"eta_min": 2e-5},
            }
        },
        "so the rate would rise",
    ),
    ({"flow_matching": {"timestep_sampling_params": {"min_value": 0.1}}}, "min_value: unknown key"),
    ({"flow_matching": {"timestep_sampling_params": {"max_token": 1}}}, "did you mean max_tokens?"),
    ({"flow_matching": {"timestep_sampling_params": {"min_tokens": 5, "max_tokens": 4}}}, "above max_tokens"),
    (
        {
            "flow_matching": {
                "timestep_sampling_mode": "uniform",
                "timestep_sampling_params": {"min_value": 2},
            }
        },
        "less than or equal to 1",
    ),
    ({"batching": {"samples_per_step": 4, "tokens_per_step": 4}}, "a step has one size"),
    ({"batching": {"samples_per_step": 0}}, "greater than 0"),
    ({"batching": {"max_tokens_per_pack": 0}}, "greater than 0"),
    ({"batching": {"mix": "sorted"}}, "should be 'random' or 'similar'"),
    ({"deepspeed": {"stage": 4}}, "should be 0, 1, 2 or 3"),
    ({"deepspeed": {"stage": 0, "offload_optimizer": "cpu"}}, "needs deepspeed.stage 1 or more"),
    ({"deepspeed": {"stage": 2, "offload_param": "cpu"}}, "needs deepspeed.stage 3 or more"),
    ({"deepspeed": {"timeout_minutes": 0}}, "greater than 0"),
    ({"hub": {"push_to_hub": True}}, "hub.hub_model_id: required"),
    ({"checkpoints": {"keep_last_n": -2}}, "greater than or equal to -1"),
    ({"checkpoints": {"interval": 0}}, "greater than 0"),
    ({"tensorboard": {"interval": 0}}, "greater than 0"),
    ({"seed": -1}, "greater than or equal to 0"),
    ({"seed": 2**64}, "less than 18446744073709551616"),
    ({"data": {}}, "data.preprocessed_data_root: required"),
]


@pytest.mark.parametrize(("blocks", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refused(blocks: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        build(**blocks)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "blocks",
    [
        {"conditioning": {"mode": "reference_video"}, "validation": {"reference_videos": []}},
        {"acceleration": {"quantization": "no_change"}, "model": {"training_mode": "full"}},
        {"lora": None, "model": {"training_mode": "full"}},
        {"optimization": {"learning_rate": 0, "scheduler_type": "cosine_with_restarts"}},
        {"optimization": {"max_grad_norm": 0}},
        {"checkpoints": {"keep_last_n": -1}, "validation": {"interval": None}},
        {"hub": {"push_to_hub": True, "hub_model_id": "me/mine"}},
        {"deepspeed": {"stage": 1, "offload_optimizer": "cpu"}},
    ],
)
def test_accepted(blocks: dict[str, Any]) -> None:
    assert build(**blocks)


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        ({"train_batch_size": 8}, "batching.samples_per_step"),
        ({"train_micro_batch_size_per_gpu": 8}, "batching.samples_per_step"),
        ({"gradient_accumulation_steps": 8}, "batching.samples_per_step"),
        ({"gradient_clipping": 0.5}, "optimization.max_grad_norm"),
        ({"optimizer": {"type": "Lion"}}, "optimization.optimizer_type"),
        ({"scheduler": {}}, "optimization.scheduler_type"),
        ({"bf16": {"enabled": True}}, "acceleration.mixed_precision_mode"),
        ({"fp16": {"enabled": True}}, "acceleration.mixed_precision_mode"),
        ({"bf16": {"check_grad_overflow": False}}, "health.max_skipped_steps"),
        ({"zero_optimization": {"compute_grad_norm": False}}, "health.max_skipped_steps"),
        ({"zero_optimization": {"stage": 2}}, "deepspeed.stage"),
        ({"zero_optimization": {"offload_param": {"device": "cpu"}}}, "deepspeed.offload_param"),
    ],
)
def test_deepspeed_keys_of_ours_are_refused_with_our_name(config: dict[str, Any], advice: str) -> None:
    with pytest.raises(ValidationError, match=advice.replace(".", r"\.")):
        build(deepspeed={"config": config})


def test_other_deepspeed_keys_pass_through() -> None:
    config = {
        "zero_optimization": {"overlap_comm": False, "offload_param": {"pin_memory": True}},
        "bf16": {"x": 1},
    }
    assert build(deepspeed={"config": config}).deepspeed.config == config


def test_samples_per_step() -> None:
    derived = build(optimization={"batch_size": 3, "gradient_accumulation_steps": 2})
    assert [derived.samples_per_step(world) for world in (1, 4)] == [6, 24]
    assert build(batching={"samples_per_step": 5}).samples_per_step(64) == 5
    assert build(batching={"tokens_per_step": 5000}).samples_per_step(64) is None


def test_params_are_typed_by_their_mode() -> None:
    assert build().flow_matching.sampling == ShiftedLogitNormalSampling()
    clamped = build(flow_matching={"timestep_sampling_params": {"max_tokens": "4096"}})
    assert clamped.flow_matching.timestep_sampling_params == {"max_tokens": 4096}
    uniform = build(
        flow_matching={"timestep_sampling_mode": "uniform", "timestep_sampling_params": {"max_value": 0.5}}
    )
    assert uniform.flow_matching.sampling == UniformSampling(max_value=0.5)
    restarts = build(optimization={"scheduler_type": "cosine_with_restarts", "scheduler_params": {"T_0": 5}})
    assert restarts.optimization.schedule == RestartsParams(T_0=5)


def test_a_config_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        build().optimization.steps = 5


def blocks_of(model: type[BaseModel]) -> list[type[BaseModel]]:
    return [model, *(block for child in model.__subclasses__() for block in blocks_of(child))]


@pytest.mark.parametrize("block", blocks_of(Block), ids=lambda block: block.__name__)
def test_every_key_is_described(block: type[BaseModel]) -> None:
    for name, field in block.model_fields.items():
        description = field.description or ""
        assert description.endswith("."), f"{block.__name__}.{name}"
        assert len(description) > 5, f"{block.__name__}.{name}"


def test_importing_the_config_does_not_import_torch() -> None:
    code = (
        "import sys, dist_trainer.config, dist_trainer.schedule;"
        "sys.exit(', '.join(name for name in ('torch', 'numpy', 'deepspeed') if name in sys.modules) or 0)"
    )
    root = Path(__file__).parents[3]
    ran = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
