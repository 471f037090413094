"""The blocks of a run's configuration, each valid by itself."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator, model_validator

from dist_trainer.config.block import Block
from dist_trainer.config.data import BatchingConfig, DataConfig
from dist_trainer.config.health import HealthConfig
from dist_trainer.config.model import ConditioningConfig, LoraConfig, ModelConfig
from dist_trainer.config.output import (
    CheckpointsConfig,
    HubConfig,
    TensorboardConfig,
    ValidationConfig,
    WandbConfig,
)
from dist_trainer.config.training import AccelerationConfig, FlowMatchingConfig, OptimizationConfig
from dist_trainer.config.zero import DeepSpeedConfig


class Blocks(Block):
    """Names, defaults and rules are LTX-Video-Trainer's where it has the key: its YAML loads unchanged."""

    model: ModelConfig = Field(default_factory=ModelConfig, description="What is trained.")
    lora: LoraConfig | None = Field(default=None, description="The adapters; required in lora mode.")
    conditioning: ConditioningConfig = Field(
        default_factory=ConditioningConfig, description="What a sample is conditioned on besides its text."
    )
    optimization: OptimizationConfig = Field(default_factory=OptimizationConfig, description="How it learns.")
    acceleration: AccelerationConfig = Field(
        default_factory=AccelerationConfig, description="Number formats and compilation."
    )
    data: DataConfig = Field(default_factory=DataConfig, description="What it learns from.")
    batching: BatchingConfig = Field(default_factory=BatchingConfig, description="What one step trains.")
    validation: ValidationConfig = Field(
        default_factory=ValidationConfig, description="Sample videos on the way."
    )
    checkpoints: CheckpointsConfig = Field(default_factory=CheckpointsConfig, description="When to save.")
    flow_matching: FlowMatchingConfig = Field(default_factory=FlowMatchingConfig, description="Noise levels.")
    deepspeed: DeepSpeedConfig = Field(
        default_factory=DeepSpeedConfig, description="How state is spread over processes."
    )
    health: HealthConfig = Field(
        default_factory=HealthConfig, description="What is done about machines and samples that fail."
    )
    tensorboard: TensorboardConfig = Field(default_factory=TensorboardConfig, description="Curves.")
    hub: HubConfig = Field(default_factory=HubConfig, description="Upload at the end.")
    wandb: WandbConfig = Field(default_factory=WandbConfig, description="Weights & Biases.")
    seed: int = Field(
        default=42, ge=0, lt=2**64, description="Decides order, noise, sigmas and coins of the run."
    )
    output_dir: Path = Field(default=Path("outputs"), validate_default=True, description="The run's folder.")

    @model_validator(mode="before")
    @classmethod
    def _empty_blocks(cls, values: Any) -> Any:
        """A block with its lines commented out reads as null: take its defaults (`lora: null` is none)."""
        if not isinstance(values, dict):
            return values
        blocks = {name for name, field in cls.model_fields.items() if field.default_factory is not None}
        return {key: value for key, value in values.items() if value is not None or key not in blocks}

    @model_validator(mode="before")
    @classmethod
    def _first_frame_in_its_old_place(cls, values: Any) -> Any:
        """Early files of LTX-Video-Trainer set first_frame_conditioning_p under optimization."""
        key = "first_frame_conditioning_p"
        if not isinstance(values, dict) or key not in (values.get("optimization") or {}):
            return values
        optimization = dict(values["optimization"])
        moved = {key: optimization.pop(key)}
        conditioning = moved | dict(values.get("conditioning") or {})
        return values | {"optimization": optimization, "conditioning": conditioning}

    @field_validator("output_dir")
    @classmethod
    def _absolute(cls, value: Path) -> Path:
        return Path(os.path.expanduser(value)).resolve()
