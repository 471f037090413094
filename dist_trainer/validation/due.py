"""When a run measures its held-out loss. Imports without torch."""

from __future__ import annotations

from dist_trainer.config import RunConfig


def is_due(config: RunConfig, step: int) -> bool:
    """Whether the held-out loss is measured after `step` (0: before the first one)."""
    if step == 0:
        return not config.validation.skip_initial_validation
    interval = interval_of(config)
    return step == config.optimization.steps or (interval is not None and step % interval == 0)


def times_due(config: RunConfig) -> int:
    """How often a whole run measures it."""
    steps = config.optimization.steps
    return int(is_due(config, 0)) - (-steps // (interval_of(config) or steps))


def interval_of(config: RunConfig) -> int | None:
    """Steps between measurements; None: only before the first step and after the last one."""
    return config.validation.holdout_interval or config.validation.interval
