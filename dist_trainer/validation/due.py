"""When a run looks at its model: when it measures its held-out loss, and when it makes sample videos.

Imports without torch.
"""

from __future__ import annotations

from dist_trainer.config import RunConfig


def heldout_due(config: RunConfig, step: int) -> bool:
    """Whether the held-out loss is measured after `step` (0: before the first one)."""
    return _is_due(config, step, heldout_interval(config))


def heldout_times(config: RunConfig) -> int:
    """How often a whole run measures it."""
    steps = config.optimization.steps
    return int(heldout_due(config, 0)) - (-steps // (heldout_interval(config) or steps))


def heldout_interval(config: RunConfig) -> int | None:
    """Steps between measurements; None: only before the first step and after the last one."""
    return config.validation.holdout_interval or config.validation.interval


def videos_wanted(config: RunConfig) -> bool:
    """Whether a run makes sample videos."""
    return bool(config.validation.prompts) and config.validation.interval is not None


def videos_due(config: RunConfig, step: int) -> bool:
    """Whether sample videos are made after `step` (0: before the first one)."""
    return videos_wanted(config) and _is_due(config, step, config.validation.interval)


def _is_due(config: RunConfig, step: int, interval: int | None) -> bool:
    if step == 0:
        return not config.validation.skip_initial_validation
    return step == config.optimization.steps or (interval is not None and step % interval == 0)
