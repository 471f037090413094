"""The run's settings in DeepSpeed's words: one plain dictionary."""

from __future__ import annotations

from typing import Any

from dist_trainer.config import RunConfig
from dist_trainer.config.source import merged


def deepspeed_config(config: RunConfig, on_gpu: bool) -> dict[str, Any]:
    """The JSON DeepSpeed reads. The user's `deepspeed.config` is merged over it last.

    One micro-batch per engine step is declared: the plan varies the number of micro-steps, and the engine is told
    the accumulation boundary at each of them.
    """
    in_bf16 = config.acceleration.precision == "bf16"
    zero: dict[str, Any] = {
        # DeepSpeed's stage 0 knows no float32 gradients for bf16 weights; its stage 1 does the same arithmetic.
        "stage": max(config.deepspeed.stage, 1 if in_bf16 else 0),
        "contiguous_gradients": True,
        "overlap_comm": on_gpu,
    }
    if config.deepspeed.stage == 3:
        zero["stage3_gather_16bit_weights_on_model_save"] = False
    if config.deepspeed.offload_optimizer != "none":
        zero["offload_optimizer"] = {"device": config.deepspeed.offload_optimizer, "pin_memory": on_gpu}
    if config.deepspeed.offload_param != "none":
        zero["offload_param"] = {"device": config.deepspeed.offload_param, "pin_memory": on_gpu}
    ours: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": float(config.optimization.max_grad_norm),
        "bf16": {"enabled": in_bf16},
        "zero_optimization": zero,
        # Our optimizers are torch's own; DeepSpeed's need a compiler at run time.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if in_bf16:
        # Micro-steps add up in float32, so that how a step is cut into them does not show in bf16 rounding.
        ours["data_types"] = {"grad_accum_dtype": "fp32"}
    return merged(ours, config.deepspeed.config)
