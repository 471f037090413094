"""The whole configuration of a run."""

from __future__ import annotations

from typing import Self

from pydantic import model_validator

from dist_trainer.config.blocks import Blocks
from dist_trainer.config.problem import RuleError
from dist_trainer.config.rules import broken


class RunConfig(Blocks):
    """Blocks that also fit each other."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        if problems := list(broken(self)):
            raise RuleError(problems)
        return self

    def samples_per_step(self, world: int) -> int | None:
        """Samples in a step when first launched on `world` processes; None where tokens size the step."""
        if self.batching.tokens_per_step is not None:
            return None
        if self.batching.samples_per_step is not None:
            return self.batching.samples_per_step
        return self.optimization.batch_size * self.optimization.gradient_accumulation_steps * world
