"""What comes out of a run: blocks `validation`, `checkpoints`, `hub`, `wandb` and `tensorboard`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from dist_trainer.config.block import Block, UserPath

_Size = Annotated[int, Field(gt=0)]


class ValidationConfig(Block):
    """Block `validation`: sample videos made during the run."""

    prompts: tuple[str, ...] = Field(default=(), description="One sample video, or more, for each.")
    negative_prompt: str = Field(
        default="worst quality, inconsistent motion, blurry, jittery, distorted",
        description="What to steer away from.",
    )
    images: tuple[UserPath, ...] | None = Field(
        default=None, description="First frames, one for each prompt: picture files."
    )
    reference_videos: tuple[UserPath, ...] | None = Field(
        default=None,
        description="References, one for each prompt. Required for conditioning.mode reference_video.",
    )
    video_dims: tuple[_Size, _Size, _Size] = Field(
        default=(704, 480, 161), description="Width and height in pixels, and frames."
    )
    frame_rate: float = Field(
        default=25.0, gt=0.0, description="Frames per second that the model is told, and of the files."
    )
    seed: int = Field(default=42, description="Seed of the sample videos' noise.")
    inference_steps: int = Field(default=50, gt=0, description="Denoising steps.")
    interval: int | None = Field(default=100, gt=0, description="Steps between validations; null: none.")
    videos_per_prompt: int = Field(default=1, gt=0, description="Sample videos for each prompt.")
    guidance_scale: float = Field(
        default=3.5, ge=1.0, description="Strength of classifier-free guidance; 1: none."
    )
    skip_initial_validation: bool = Field(default=False, description="No validation before the first step.")
    holdout: float = Field(
        default=0.0,
        ge=0.0,
        lt=1.0,
        description="Share of the samples that is never trained; the loss on them is measured. 0: none.",
    )
    holdout_data: UserPath | None = Field(
        default=None, description="Measure the loss on this dataset instead of a share of the training data."
    )
    holdout_interval: int | None = Field(
        default=None, gt=0, description="Steps between measurements of the held-out loss; null: as interval."
    )
    holdout_samples: int = Field(
        default=64, gt=0, description="Measure the loss of at most so many held-out samples."
    )

    @field_validator("video_dims", mode="before")
    @classmethod
    def _three(cls, value: Any) -> Any:
        if not isinstance(value, list | tuple) or len(value) != 3:
            raise ValueError("give width, height and frames, as [704, 480, 161]")
        return value


class CheckpointsConfig(Block):
    """Block `checkpoints`."""

    interval: int | None = Field(
        default=None, gt=0, description="Steps between checkpoints; null: only the one at the end."
    )
    keep_last_n: int = Field(default=1, ge=-1, description="How many of the newest to keep; -1 or 0: all.")
    export: Literal["none", "diffusers", "comfyui", "both"] = Field(
        default="none",
        description="Export the weights with each checkpoint, for these programs; exports are never deleted. The end "
        "of the run exports them in any case.",
    )


class HubConfig(Block):
    """Block `hub`."""

    push_to_hub: bool = Field(
        default=False, description="Upload what was trained to the Hugging Face hub, at the end."
    )
    hub_model_id: str | None = Field(default=None, description="Repository to upload to, owner/name.")
    private: bool = Field(default=False, description="Make the repository a private one.")


class WandbConfig(Block):
    """Block `wandb`."""

    enabled: bool = Field(default=False, description="Log to Weights & Biases.")
    project: str = Field(default="ltxv-trainer", description="Project to log to.")
    entity: str | None = Field(default=None, description="User or team that owns the project.")
    tags: tuple[str, ...] = Field(default=(), description="Tags of the run.")
    log_validation_videos: bool = Field(default=True, description="Log the sample videos too.")


class TensorboardConfig(Block):
    """Block `tensorboard`."""

    enabled: bool = Field(default=True, description="Write events to the run's tensorboard folder.")
    interval: int = Field(default=1, gt=0, description="Steps between points.")
    peak_tflops: float | None = Field(
        default=None,
        gt=0,
        description="What one device can compute, TFLOP/s: speed/mfu is a share of it. null: known for common GPUs "
        "in bf16, else that figure is left out.",
    )
