"""What a run does about machines and samples that fail it: block `health`."""

from __future__ import annotations

from pydantic import Field

from dist_trainer.config.block import Block


class HealthConfig(Block):
    """Block `health`."""

    preflight: bool = Field(
        default=True, description="Try every node (devices, network, storage) before training."
    )
    hang_minutes: float = Field(
        default=15.0,
        gt=0.0,
        description="A run in which no process moves for so long is ended, to be started again, with a line that says "
        "who stands where. What waits for others at an agreed point has deepspeed.timeout_minutes: keep this below.",
    )
    silent_seconds: float = Field(
        default=60.0,
        gt=0.0,
        description="A process (killed, frozen, its machine gone) that is not heard of for so long ends the run. "
        "Keep it well below hang_minutes, and above the longest pause of your network. Once the launcher ends the "
        "others (TERM), 10 seconds are enough.",
    )
    max_skipped_steps: int = Field(
        default=5,
        ge=0,
        description="How many steps in a row may be skipped because loss or gradient is not finite.",
    )
    max_restarts: int = Field(
        default=3,
        ge=0,
        description="How often a job that crashes is queued again without a new checkpoint in between.",
    )
