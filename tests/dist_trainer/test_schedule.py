"""The learning rate equals torch's schedulers step by step, and depends on nothing but the step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import lr_scheduler as torch_schedules

from dist_trainer.config.training import OptimizationConfig
from dist_trainer.schedule import lr_at

STEPS = 97
Make = Callable[[torch.optim.Optimizer], torch_schedules.LRScheduler]


def cfg(kind: str, params: dict[str, Any], **more: Any) -> OptimizationConfig:
    values = {
        "steps": STEPS,
        "learning_rate": 5e-4,
        "scheduler_type": kind,
        "scheduler_params": params,
        **more,
    }
    return OptimizationConfig.model_validate(values)


# kind, params, the scheduler LTX-Video-Trainer makes of them
CASES: list[tuple[str, dict[str, Any], Make]] = [
    ("constant", {}, lambda o: torch_schedules.ConstantLR(o, factor=1.0)),
    ("linear", {}, lambda o: torch_schedules.LinearLR(o, 1.0, 0.1, total_iters=STEPS)),
    (
        "linear",
        {"start_factor": 0.2, "end_factor": 0.0},
        lambda o: torch_schedules.LinearLR(o, 0.2, 0.0, total_iters=STEPS),
    ),
    ("cosine", {}, lambda o: torch_schedules.CosineAnnealingLR(o, T_max=STEPS, eta_min=0)),
    ("cosine", {"eta_min": 1e-5}, lambda o: torch_schedules.CosineAnnealingLR(o, T_max=STEPS, eta_min=1e-5)),
    (
        "cosine_with_restarts",
        {},
        lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, T_0=STEPS // 4, T_mult=1, eta_min=5e-5),
    ),
    (
        "cosine_with_restarts",
        {"T_0": 7, "T_mult": 3, "eta_min": 0},
        lambda o: torch_schedules.CosineAnnealingWarmRestarts(o, T_0=7, T_mult=3, eta_min=0),
    ),
    ("polynomial", {}, lambda o: torch_schedules.PolynomialLR(o, total_iters=STEPS, power=1.0)),
    ("polynomial", {"power": 2.5}, lambda o: torch_schedules.PolynomialLR(o, total_iters=STEPS, power=2.5)),
]


@pytest.mark.parametrize(
    ("kind", "params", "make"), CASES, ids=[f"{kind}-{params}" for kind, params, _ in CASES]
)
def test_equals_torch_at_every_step(kind: str, params: dict[str, Any], make: Make) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=5e-4)
    scheduler = make(optimizer)
    expected = []
    for _ in range(STEPS):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    config = cfg(kind, params)
    # torch multiplies its way from step to step; the closed form differs by its rounding.
    assert [lr_at(step, config) for step in range(STEPS)] == pytest.approx(expected, rel=1e-9, abs=1e-16)


def test_cosine_takes_eta_min() -> None:
    """The predecessor passed eta_min twice and died of a TypeError."""
    config = cfg("cosine", {"eta_min": 1e-5})
    assert lr_at(0, config) == 5e-4
    assert lr_at(STEPS, config) == pytest.approx(1e-5)


def test_restarts_never_climb_above_a_low_rate() -> None:
    """The default floor, 5e-5, is above the usual rate of full fine-tuning."""
    config = cfg("cosine_with_restarts", {}, learning_rate=1e-5)
    assert {lr_at(step, config) for step in range(STEPS)} == {1e-5}


@pytest.mark.parametrize(("kind", "params"), [(kind, params) for kind, params, _ in CASES])
def test_warmup_climbs_then_the_schedule_takes_the_rest(kind: str, params: dict[str, Any]) -> None:
    warm, plain = cfg(kind, params, warmup_steps=9), cfg(kind, params, steps=STEPS - 9)
    assert [lr_at(9 + step, warm) for step in range(STEPS - 9)] == [
        lr_at(step, plain) for step in range(STEPS - 9)
    ]
    climb = [lr_at(step, warm) for step in range(10)]
    assert climb == pytest.approx([lr_at(9, warm) * (step + 1) / 10 for step in range(10)])


def test_short_runs_have_a_cycle_of_one_step() -> None:
    assert lr_at(2, cfg("cosine_with_restarts", {}, steps=3)) == 5e-4


@given(st.sampled_from(CASES), st.integers(1, 60), st.integers(0, 70), st.floats(0, 1))
def test_the_rate_stays_between_zero_and_the_highest(
    case: tuple[str, dict[str, Any], Make], steps: int, step: int, share: float
) -> None:
    kind, params, _ = case
    config = cfg(kind, params, steps=steps, warmup_steps=int(share * (steps - 1)))
    assert 0.0 <= lr_at(step, config) <= 5e-4 * (1 + 1e-12)
