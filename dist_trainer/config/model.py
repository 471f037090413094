"""What is trained, and on which condition: blocks `model`, `lora` and `conditioning`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from dist_trainer.config.block import Block, UserPath
from dist_trainer.config.problem import Problem, RuleError, suggestion
from shards.source import LATEST, VERSIONS


def _known_version(source: str) -> str:
    if source.upper().startswith("LTXV_") and source not in VERSIONS and not Path(source).exists():
        problem = Problem((), "no such model version" + suggestion(source, list(VERSIONS)), source, show=True)
        raise RuleError([problem])
    return source


class ModelConfig(Block):
    """Block `model`."""

    model_source: Annotated[UserPath, AfterValidator(_known_version)] = Field(
        default=LATEST,
        min_length=1,
        description="The base model: a local folder in diffusers' layout, a Hugging Face repository id, or a "
        "version name such as LTXV_2B_0.9.5.",
    )
    training_mode: Literal["lora", "full"] = Field(
        default="lora", description="Train low-rank adapters (lora) or every weight (full)."
    )
    load_checkpoint: UserPath | None = Field(
        default=None,
        description="Weights to start from: a LoRA (diffusers' or ComfyUI's keys) or a whole model, as a .safetensors "
        "file, a folder (its newest file, by the number after step_), or a run's folder.",
    )
    causal_positions: bool = Field(
        default=False,
        description="Time coordinate of latent frame k: false is k*8/fps, as LTX-Video-Trainer trains and "
        "LTXPipeline samples; true is max(0, 8k-7)/fps, as LTXConditionPipeline samples (8 is the VAE's "
        "time ratio).",
    )


class LoraConfig(Block):
    """Block `lora`."""

    rank: int = Field(default=64, ge=2, description="Rank of the adapters.")
    alpha: int = Field(
        default=64, ge=1, description="Scale of the adapters: their output is times alpha / rank."
    )
    dropout: float = Field(default=0.0, ge=0.0, le=1.0, description="Dropout before the adapters.")
    target_modules: tuple[str, ...] = Field(
        default=("to_k", "to_q", "to_v", "to_out.0"),
        min_length=1,
        description="Ends of the names of the linear layers that get an adapter.",
    )


class ConditioningConfig(Block):
    """Block `conditioning`."""

    mode: Literal["none", "reference_video"] = Field(
        default="none",
        description="reference_video trains an IC-LoRA: each sample's reference goes before its target.",
    )
    first_frame_conditioning_p: float = Field(
        default=0.1,
        ge=0.0,
        le=1.0,
        description="Probability, per sample, that its first frame is given clean.",
    )
    reference_latents_dir: str = Field(
        default="ref_latents",
        description="Folder of the references in LTX-Video-Trainer's data; only its import reads this.",
    )
