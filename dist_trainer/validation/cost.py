"""What the held-out loss costs beside training, told before a run trains. Imports without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dist_trainer.config import RunConfig
from dist_trainer.feed.holdout import chosen
from dist_trainer.validation.due import heldout_interval, heldout_times
from dist_trainer.validation.rounds import SHUFFLED, SIGMAS, Round, rounds
from shards.dataset.manifest import Manifest
from shards.dataset.opened import Dataset
from shards.efficiency import Efficiency
from shards.geometry import Patch
from shards.pack import costs
from shards.plan import Plan

_MUCH = 0.2  # of the time that training's forward passes take


@dataclass(frozen=True)
class HeldoutCost:
    """Of `held_out` samples `measured` are measured, with so many kinds of `references`, of so many sets of `weights`.

    `steps`: how many training steps' forward passes take as long as one measurement. `share`: of all measurements of a
    run in the time of its forward passes. `interval`: in steps; None: at both ends. `notes`: what a user may change.
    """

    held_out: int
    measured: int
    references: int
    weights: int
    steps: float
    share: float
    interval: int | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        factors = (
            f"{self.measured} samples x {len(SIGMAS)} noise levels",
            *([f"{self.references} kinds of reference"] if self.references > 1 else []),
            *([f"{self.weights} (weights and their running mean)"] if self.weights > 1 else []),
        )
        when = f"every {self.interval} steps" if self.interval else "at both ends of the run"
        return (
            f"held out: {self.held_out} samples, never trained; {when} their loss is measured, {' x '.join(factors)}: "
            f"as long as the forward passes of {self.steps:.2f} steps"
        )


def heldout_cost(
    config: RunConfig,
    held_out: Dataset,
    plan: Plan,
    patch: Patch,
    quadratic: float,
    cap: int,
    packing: Efficiency,
) -> HeldoutCost:
    """The cost of the held-out loss in a run whose steps lay out as `packing` says, against their forward passes alone:
    nothing goes backward here.
    """
    mode = config.conditioning.mode
    some = chosen(held_out, config.seed, config.validation.holdout_samples).manifest
    made = rounds(some, mode, patch, quadratic, cap, packing.ranks)
    weights = 1 if config.optimization.ema_decay is None else 2
    work = float(costs(plan.tokens, quadratic).sum()) / plan.steps_per_epoch
    steps = weights * sum(one.span for one in made) * packing.ranks * packing.useful / work
    share = heldout_times(config) * steps / config.optimization.steps
    return HeldoutCost(
        held_out=len(held_out.manifest),
        measured=len(some),
        references=len(made),
        weights=weights,
        steps=steps,
        share=share,
        interval=heldout_interval(config),
        notes=tuple(_notes(share, some, made, mode, patch, cap)),
    )


def _notes(
    share: float, some: Manifest, made: Sequence[Round], mode: str, patch: Patch, cap: int
) -> Iterator[str]:
    if share > _MUCH:
        yield (
            f"validation.holdout_samples: measuring the held-out loss takes {share:.0%} of the time that training's "
            "forward passes take; measure fewer samples, or seldomer (validation.holdout_interval)"
        )
    longest = int((some.target_tokens if mode == "none" else some.tokens)(patch).max())
    if longest > cap:
        yield (
            f"validation.holdout_samples: the longest sample measured has {longest} tokens, more than the {cap} of a "
            "pack of training; it is measured in a larger one"
        )
    paired = sum(len(one.rows) for one in made if one.kind == SHUFFLED)
    if mode == "reference_video" and paired < len(some):
        left = "heldout/reference_* leave them out" if paired else "heldout/reference_shuffled is left out"
        yield f"{len(some) - paired} of the measured samples have references of a size that no other has; {left}"
