"""The learning rate as a pure function of the optimizer step.

The shapes, parameter names and defaults are those of torch.optim.lr_scheduler as LTX-Video-Trainer sets them
up, counted in optimizer steps of the run: the number of processes does not enter.
"""

from __future__ import annotations

import math

from dist_trainer.config.training import (
    ConstantParams,
    CosineParams,
    LinearParams,
    OptimizationConfig,
    PolynomialParams,
    RestartsParams,
)

_RESTART_FLOOR = 5e-5


def lr_at(step: int, optimization: OptimizationConfig) -> float:
    """Learning rate of optimizer step `step`, counted from 0.

    The first `warmup_steps` steps climb in a straight line (`(step + 1) / (warmup_steps + 1)`) to where the
    schedule starts; the schedule takes the remaining `steps - warmup_steps`. Past the end it stays constant.
    """
    warmup = optimization.warmup_steps
    length = max(1, optimization.steps - warmup)
    if step < warmup:
        return _scheduled(0, length, optimization) * (step + 1) / (warmup + 1)
    return _scheduled(min(step - warmup, length), length, optimization)


def _scheduled(step: int, length: int, optimization: OptimizationConfig) -> float:
    """The schedule without warm-up, at `step` of `length`."""
    top, params = optimization.learning_rate, optimization.schedule
    progress = step / length
    match params:
        case ConstantParams():
            return top
        case LinearParams(start_factor=start, end_factor=end):
            return top * (start + (end - start) * progress)
        case CosineParams(eta_min=low):
            return _cosine(low, top, progress)
        case RestartsParams():
            # A floor above the rate itself would make the cycles climb.
            low = min(_RESTART_FLOOR, top) if params.eta_min is None else params.eta_min
            return _cosine(low, top, _cycle_progress(step, params.T_0 or max(1, length // 4), params.T_mult))
        case PolynomialParams(power=power):
            return top * (1.0 - progress) ** power


def _cosine(low: float, top: float, progress: float) -> float:
    return low + (top - low) * (1.0 + math.cos(math.pi * progress)) / 2.0


def _cycle_progress(step: int, length: int, factor: int) -> float:
    """How far into its cycle `step` is: the first has `length` steps, each `factor` times the one before."""
    if factor == 1:
        return step % length / length
    while step >= length:
        step -= length
        length *= factor
    return step / length
