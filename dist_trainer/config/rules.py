"""Rules that tie keys of different places together; each broken one is a `Problem`."""

from __future__ import annotations

from collections.abc import Iterator

from dist_trainer.config.blocks import Blocks
from dist_trainer.config.problem import Path, Problem
from dist_trainer.config.training import CosineParams, RestartsParams, UniformSampling

_MODE: Path = ("model", "training_mode")
_CONDITION: Path = ("conditioning", "mode")


def broken(config: Blocks) -> Iterator[Problem]:
    """Every rule that `config` breaks, all keys being valid by themselves."""
    yield from _mode(config)
    yield from _validation(config)
    yield from _optimization(config)
    yield from _sampling(config)
    yield from _batching(config)
    if config.hub.push_to_hub and not config.hub.hub_model_id:
        yield Problem(
            ("hub", "hub_model_id"), "required when hub.push_to_hub is true", others=(("hub", "push_to_hub"),)
        )


def _mode(config: Blocks) -> Iterator[Problem]:
    mode = config.model.training_mode
    if not config.data.preprocessed_data_root:
        yield Problem(
            ("data", "preprocessed_data_root"),
            "required: the folder of a dataset that `ltx-shards encode` wrote",
        )
    if mode == "lora" and config.lora is None:
        yield Problem(
            ("lora",), "required when model.training_mode is lora; lora.rank = 64 would do", others=(_MODE,)
        )
    if mode == "full" and config.acceleration.quantization not in (None, "no_change"):
        yield Problem(
            ("acceleration", "quantization"),
            "only frozen weights can be quantized: use model.training_mode lora, or null here",
            config.acceleration.quantization,
            show=True,
            others=(_MODE,),
        )
    if mode != "lora" and config.conditioning.mode == "reference_video":
        yield Problem(
            _MODE, "conditioning.mode reference_video needs lora", mode, show=True, others=(_CONDITION,)
        )


def _validation(config: Blocks) -> Iterator[Problem]:
    prompts: Path = ("validation", "prompts")
    references: Path = ("validation", "reference_videos")
    if config.conditioning.mode == "reference_video" and config.validation.reference_videos is None:
        yield Problem(
            references,
            "required when conditioning.mode is reference_video, one for each of validation.prompts "
            "([] when there are none)",
            others=(_CONDITION,),
        )
    if config.validation.holdout_data is not None and config.validation.holdout:
        yield Problem(
            ("validation", "holdout_data"),
            "held-out samples come from one place: set this to null, or validation.holdout to 0",
            config.validation.holdout_data,
            show=True,
            others=(("validation", "holdout"),),
        )
    wanted = len(config.validation.prompts)
    for path, given in (
        (("validation", "images"), config.validation.images),
        (references, config.validation.reference_videos),
    ):
        if given is not None and len(given) != wanted:
            yield Problem(
                path,
                f"one for each of validation.prompts: {wanted} expected, {len(given)} given",
                others=(prompts,),
            )


def _optimization(config: Blocks) -> Iterator[Problem]:
    optimization = config.optimization
    steps, rate = ("optimization", "steps"), ("optimization", "learning_rate")
    if optimization.warmup_steps >= optimization.steps:
        yield Problem(
            ("optimization", "warmup_steps"),
            f"must be below optimization.steps ({optimization.steps})",
            optimization.warmup_steps,
            show=True,
            others=(steps,),
        )
    schedule = optimization.schedule
    if (
        isinstance(schedule, (CosineParams, RestartsParams))
        and (schedule.eta_min or 0.0) > optimization.learning_rate
    ):
        yield Problem(
            ("optimization", "scheduler_params", "eta_min"),
            f"above optimization.learning_rate ({optimization.learning_rate}), so the rate would rise",
            schedule.eta_min,
            show=True,
            others=(rate, ("optimization", "scheduler_type")),
        )


def _sampling(config: Blocks) -> Iterator[Problem]:
    sampling, params = config.flow_matching.sampling, ("flow_matching", "timestep_sampling_params")
    low: float | None
    high: float | None
    if isinstance(sampling, UniformSampling):
        low, high, names = sampling.min_value, sampling.max_value, ("min_value", "max_value")
    else:
        low, high, names = sampling.min_tokens, sampling.max_tokens, ("min_tokens", "max_tokens")
    if low is not None and high is not None and low > high:
        yield Problem(
            (*params, names[0]), f"above {names[1]} ({high})", low, show=True, others=((*params, names[1]),)
        )


def _batching(config: Blocks) -> Iterator[Problem]:
    batching, deepspeed = config.batching, config.deepspeed
    if batching.samples_per_step is not None and batching.tokens_per_step is not None:
        yield Problem(
            ("batching", "tokens_per_step"),
            "a step has one size: set this or batching.samples_per_step to null",
            batching.tokens_per_step,
            show=True,
            others=(("batching", "samples_per_step"),),
        )
    stage: Path = ("deepspeed", "stage")
    for key, device, lowest in (
        ("offload_optimizer", deepspeed.offload_optimizer, 1),
        ("offload_param", deepspeed.offload_param, 3),
    ):
        if device != "none" and deepspeed.stage < lowest:
            yield Problem(
                ("deepspeed", key),
                f"needs deepspeed.stage {lowest} or more, not {deepspeed.stage}",
                device,
                show=True,
                others=(stage,),
            )
