"""How it learns: blocks `optimization`, `acceleration` and `flow_matching`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator

from dist_trainer.config.block import Block, parse_params


class ConstantParams(Block):
    """The `constant` schedule has no parameters."""


class LinearParams(Block):
    """From `start_factor` to `end_factor` times the learning rate."""

    start_factor: float = Field(default=1.0, gt=0.0, le=1.0, description="Factor at the first step.")
    end_factor: float = Field(default=0.1, ge=0.0, le=1.0, description="Factor after the last step.")


class CosineParams(Block):
    """Half a cosine from the learning rate down to `eta_min`."""

    eta_min: float = Field(default=0.0, ge=0.0, description="Learning rate after the last step.")


class RestartsParams(Block):
    """Cosine cycles that start again at the learning rate."""

    T_0: int | None = Field(
        default=None, gt=0, description="Steps of the first cycle; null: a quarter of the run."
    )
    T_mult: int = Field(
        default=1, gt=0, description="Each cycle is this many times as long as the one before."
    )
    eta_min: float | None = Field(
        default=None,
        ge=0.0,
        description="Learning rate at a cycle's end; null: 5e-5, or learning_rate if lower.",
    )


class PolynomialParams(Block):
    """From the learning rate to 0 as `(1 - progress) ** power`."""

    power: float = Field(default=1.0, gt=0.0, description="Exponent; 1 is a straight line.")


Schedule = ConstantParams | LinearParams | CosineParams | RestartsParams | PolynomialParams

_SCHEDULES: dict[str, type[Schedule]] = {
    "constant": ConstantParams,
    "linear": LinearParams,
    "cosine": CosineParams,
    "cosine_with_restarts": RestartsParams,
    "polynomial": PolynomialParams,
}


class OptimizationConfig(Block):
    """Block `optimization`. A step is one optimizer step of the whole run, on any number of processes."""

    learning_rate: float = Field(default=5e-4, ge=0.0, description="Highest learning rate.")
    steps: int = Field(default=3000, gt=0, description="Optimizer steps of the run.")
    batch_size: int = Field(
        default=2,
        gt=0,
        description="LTX-Video-Trainer's samples per process and micro-step. Used only while batching sets "
        "neither samples_per_step nor tokens_per_step.",
    )
    gradient_accumulation_steps: int = Field(
        default=1,
        gt=0,
        description="LTX-Video-Trainer's micro-steps per step; used only together with batch_size.",
    )
    max_grad_norm: float = Field(
        default=1.0, ge=0.0, description="Clip the gradient's norm to this; 0: never."
    )
    optimizer_type: Literal["adamw", "adamw8bit", "sgd"] = Field(
        default="adamw", description="sgd has no momentum; it serves checks of exactness."
    )
    betas: tuple[Annotated[float, Field(ge=0.0, lt=1.0)], Annotated[float, Field(ge=0.0, lt=1.0)]] = Field(
        default=(0.9, 0.999), description="AdamW's decay of the running mean and of the running square."
    )
    eps: float = Field(default=1e-8, gt=0.0, description="AdamW's term against division by zero.")
    weight_decay: float = Field(default=0.01, ge=0.0, description="Decoupled weight decay.")
    warmup_steps: int = Field(
        default=0, ge=0, description="Steps of linear warm-up; the schedule takes the remaining steps."
    )
    scheduler_type: Literal["constant", "linear", "cosine", "cosine_with_restarts", "polynomial"] = Field(
        default="linear", description="Shape of the learning rate over the run's steps."
    )
    scheduler_params: dict[str, Any] = Field(
        default_factory=dict,
        description="linear: start_factor, end_factor. cosine: eta_min. cosine_with_restarts: T_0, T_mult, "
        "eta_min. polynomial: power.",
    )
    ema_decay: float | None = Field(
        default=None,
        ge=0.0,
        lt=1.0,
        description="Keep a running mean of the weights, each update adding 1 - ema_decay of the new ones (0.999 for "
        "runs of thousands of steps); it is saved, measured and shown beside them. null: none.",
    )
    enable_gradient_checkpointing: bool = Field(
        default=False,
        description="Recompute activations in the backward pass: less memory, about a third slower.",
    )

    @field_validator("scheduler_params")
    @classmethod
    def _params_of_type(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if kind := info.data.get("scheduler_type"):
            return parse_params(_SCHEDULES[kind], value).model_dump(exclude_unset=True)
        return value

    @property
    def schedule(self) -> Schedule:
        """`scheduler_params` with the defaults of `scheduler_type` filled in."""
        return parse_params(_SCHEDULES[self.scheduler_type], self.scheduler_params)


class AccelerationConfig(Block):
    """Block `acceleration`."""

    mixed_precision_mode: Literal["no", "fp16", "bf16"] | None = Field(
        default="bf16",
        description="bf16: compute in bfloat16. no or null: float32 throughout. fp16 runs as bf16.",
    )
    quantization: (
        Literal["no_change", "int8-quanto", "int4-quanto", "int2-quanto", "fp8-quanto", "fp8uz-quanto"] | None
    ) = Field(default=None, description="Precision of the frozen base weights in lora mode.")
    load_text_encoder_in_8bit: bool = Field(default=False, description="Load the text encoder in 8 bits.")
    compile_with_inductor: bool = Field(default=True, description="Compile the transformer's blocks.")
    compilation_mode: Literal["default", "reduce-overhead", "max-autotune"] = Field(
        default="reduce-overhead", description="How hard the compiler tries."
    )

    @field_validator("mixed_precision_mode", mode="before")
    @classmethod
    def _no_is_a_word(cls, value: Any) -> Any:
        # A YAML 1.1 reader turns a bare `no` into False.
        return "no" if value is False else value

    @property
    def precision(self) -> Literal["bf16", "fp32"]:
        """What the model computes in."""
        return "bf16" if self.mixed_precision_mode in ("bf16", "fp16") else "fp32"


class UniformSampling(Block):
    """sigma uniform in [min_value, max_value]."""

    min_value: float = Field(default=0.0, ge=0.0, le=1.0, description="Lowest sigma.")
    max_value: float = Field(default=1.0, ge=0.0, le=1.0, description="Highest sigma.")


class ShiftedLogitNormalSampling(Block):
    """sigma = sigmoid(std * normal + mu(L)), L the target tokens held within [min_tokens, max_tokens]."""

    std: float = Field(default=1.0, ge=0.0, description="Spread of the normal draw.")
    min_tokens: int | None = Field(
        default=None,
        gt=0,
        description="Shift shorter samples as if they had this many tokens; null: no limit.",
    )
    max_tokens: int | None = Field(
        default=None,
        gt=0,
        description="Shift longer samples as if they had this many tokens, so that they do not collapse to "
        "pure noise; null: no limit, as LTX-Video-Trainer. 4096 holds the median sigma at 0.886.",
    )


_SAMPLINGS: dict[str, type[UniformSampling] | type[ShiftedLogitNormalSampling]] = {
    "uniform": UniformSampling,
    "shifted_logit_normal": ShiftedLogitNormalSampling,
}


class FlowMatchingConfig(Block):
    """Block `flow_matching`."""

    timestep_sampling_mode: Literal["uniform", "shifted_logit_normal"] = Field(
        default="shifted_logit_normal", description="Distribution of the noise level sigma."
    )
    timestep_sampling_params: dict[str, Any] = Field(
        default_factory=dict,
        description="uniform: min_value, max_value. shifted_logit_normal: std, min_tokens, max_tokens.",
    )

    @field_validator("timestep_sampling_params")
    @classmethod
    def _params_of_mode(cls, value: dict[str, Any], info: ValidationInfo) -> dict[str, Any]:
        if mode := info.data.get("timestep_sampling_mode"):
            return parse_params(_SAMPLINGS[mode], value).model_dump(exclude_unset=True)
        return value

    @property
    def sampling(self) -> UniformSampling | ShiftedLogitNormalSampling:
        """`timestep_sampling_params` with the defaults of the mode filled in."""
        return parse_params(_SAMPLINGS[self.timestep_sampling_mode], self.timestep_sampling_params)
