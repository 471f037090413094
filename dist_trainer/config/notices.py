"""Keys that are accepted but do not do here what their name promises, or spoil another, said once at start."""

from __future__ import annotations

from collections.abc import Iterator

from dist_trainer.config.run import RunConfig
from dist_trainer.config.training import OptimizationConfig

_LONG_STEPS = 1000  # a run of so many is worth a checkpoint on the way


def notices(config: RunConfig) -> list[str]:
    """One line for each key whose value would matter and is not acted on (or not in full) by this version, or spoils
    what another is for."""
    return [*_training(config), *_limits(config), *_sizes(config), *_outputs(config), *_risks(config)]


def _training(config: RunConfig) -> Iterator[str]:
    if config.lora is not None and config.model.training_mode == "full":
        yield "lora: not used, model.training_mode is full"
    elif config.lora is not None and config.lora.dropout > 0:
        yield "lora.dropout: masks are drawn on each process, so losses depend on the number of processes"
    if (
        config.conditioning.mode == "reference_video"
        and config.conditioning.reference_latents_dir
        != type(config.conditioning).model_fields["reference_latents_dir"].default
    ):
        yield "conditioning.reference_latents_dir: not used in training; the shards hold the references"
    acceleration = config.acceleration
    if acceleration.mixed_precision_mode == "fp16":
        yield "acceleration.mixed_precision_mode: fp16 runs as bf16"
    if acceleration.quantization not in (None, "no_change"):
        yield f"acceleration.quantization: not used yet; the base model stays in {acceleration.precision}"
    if acceleration.precision == "bf16" and config.deepspeed.stage == 0:
        yield "deepspeed.stage: 0 runs as 1 in bf16, which shards the optimizer's state"
    if acceleration.compile_with_inductor:
        yield "acceleration.compile_with_inductor: not used yet; the model runs uncompiled"


def _limits(config: RunConfig) -> Iterator[str]:
    timeout, hang = config.deepspeed.timeout_minutes, config.health.hang_minutes
    if timeout < hang:
        yield (
            f"deepspeed.timeout_minutes: {timeout:g} is below health.hang_minutes ({hang:g}), so a run that hangs may "
            "end without the line that says where"
        )


def _sizes(config: RunConfig) -> Iterator[str]:
    optimization, fields = config.optimization, OptimizationConfig.model_fields
    if optimization.optimizer_type == "adamw8bit":
        yield "optimization.optimizer_type: adamw8bit runs as adamw"
    if optimization.optimizer_type == "sgd":
        for name in ("betas", "eps", "weight_decay"):
            if getattr(optimization, name) != fields[name].default:
                yield f"optimization.{name}: not used by sgd"
    sized = next(
        (key for key in ("samples_per_step", "tokens_per_step") if getattr(config.batching, key) is not None),
        None,
    )
    if sized:
        for name in ("batch_size", "gradient_accumulation_steps"):
            if getattr(optimization, name) != fields[name].default:
                yield f"optimization.{name}: not used, batching.{sized} sizes the step"


def _outputs(config: RunConfig) -> Iterator[str]:
    if config.validation.reference_videos and config.conditioning.mode == "none":
        yield "validation.reference_videos: not used, conditioning.mode is none"
    validation = config.validation
    if validation.holdout_interval is not None and not validation.holdout and not validation.holdout_data:
        yield "validation.holdout_interval: not used, nothing is held out; set validation.holdout or holdout_data"


def _risks(config: RunConfig) -> Iterator[str]:
    steps = config.optimization.steps
    if config.checkpoints.interval is None and steps >= _LONG_STEPS:
        yield (
            f"checkpoints.interval: null, so the first checkpoint is that of step {steps}, the last: a crash, or more "
            "skipped steps in a row than health.max_skipped_steps, would lose all steps before; set an interval"
        )
