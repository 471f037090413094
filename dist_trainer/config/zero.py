"""How state is spread over processes: block `deepspeed`, its passthrough and the keys that are ours."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field, field_validator

from dist_trainer.config.block import Block
from dist_trainer.config.problem import Problem, RuleError

_BATCH = "the plan decides it from batching.samples_per_step"
_OPTIMIZER = "set optimization.optimizer_type, learning_rate, betas, eps, weight_decay"
_PRECISION = "set acceleration.mixed_precision_mode"
_SKIPPED = "a step without a finite gradient norm is always skipped; set health.max_skipped_steps"

# DeepSpeed's key (with all below it) -> what to do instead.
OWNED: dict[tuple[str, ...], str] = {
    ("train_batch_size",): _BATCH,
    ("train_micro_batch_size_per_gpu",): _BATCH,
    ("gradient_accumulation_steps",): _BATCH,
    ("elasticity",): "a run already resumes on any number of processes",
    ("optimizer",): _OPTIMIZER,
    ("scheduler",): "set optimization.scheduler_type, scheduler_params, warmup_steps",
    ("gradient_clipping",): "set optimization.max_grad_norm",
    ("bf16", "enabled"): _PRECISION,
    ("bf16", "check_grad_overflow"): _SKIPPED,
    ("fp16",): _PRECISION,
    ("amp",): _PRECISION,
    ("torch_autocast",): _PRECISION,
    ("activation_checkpointing",): "set optimization.enable_gradient_checkpointing",
    ("zero_optimization", "stage"): "set deepspeed.stage",
    ("zero_optimization", "compute_grad_norm"): _SKIPPED,
    ("zero_optimization", "offload_optimizer", "device"): "set deepspeed.offload_optimizer",
    ("zero_optimization", "offload_param", "device"): "set deepspeed.offload_param",
    ("zero_optimization", "cpu_offload"): "set deepspeed.offload_optimizer",
    ("checkpoint", "load_universal"): "resuming chooses it",
    ("tensorboard",): "set tensorboard.enabled",
    ("wandb",): "set wandb.enabled",
}


class DeepSpeedConfig(Block):
    """Block `deepspeed`."""

    stage: Literal[0, 1, 2, 3] = Field(
        default=3,
        description="What is sharded: 0 nothing, 1 the optimizer's state, 2 gradients too, 3 weights too.",
    )
    offload_optimizer: Literal["none", "cpu"] = Field(
        default="none", description="Keep the optimizer's state in host memory (stage 1 to 3)."
    )
    offload_param: Literal["none", "cpu"] = Field(
        default="none", description="Keep the weights in host memory (stage 3)."
    )
    timeout_minutes: float = Field(
        default=30.0,
        gt=0.0,
        description="A process that waits longer than this for the others, at the start, a save or the end, ends the "
        "run. Above health.hang_minutes, so that a run that hangs elsewhere is explained first.",
    )
    config: dict[str, Any] = Field(
        default_factory=dict,
        description="Anything else of DeepSpeed's JSON, merged over ours; keys with a name here are refused.",
    )

    @field_validator("config")
    @classmethod
    def _not_ours(cls, value: dict[str, Any]) -> dict[str, Any]:
        if problems := list(_owned(value)):
            raise RuleError(problems)
        return value


def _owned(config: dict[str, Any]) -> Iterator[Problem]:
    for path, instead in OWNED.items():
        value: Any = config
        for key in path:
            if not isinstance(value, dict) or key not in value:
                break
            value = value[key]
        else:
            yield Problem(path, f"not DeepSpeed's to set in this trainer: {instead}", value, show=True)
