from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from dist_trainer.config import RunConfig
from dist_trainer.model.optim import make_optimizer
from tests.support.runs import tiny_config


def make(parameter: torch.nn.Parameter, **optimization: Any) -> torch.optim.Optimizer:
    described = tiny_config(Path("model"), Path("data"), Path("run"), optimization=optimization)
    return make_optimizer([parameter], RunConfig.model_validate(described))


def stepped(**optimization: Any) -> torch.Tensor:
    """Weights (1, -2) after one step on gradients (0.5, -4)."""
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    parameter.grad = torch.tensor([0.5, -4.0])
    make(parameter, **optimization).step()
    return parameter.detach()


def test_sgd_has_neither_momentum_nor_decay() -> None:
    parameter = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = make(parameter, optimizer_type="sgd", learning_rate=0.1, weight_decay=0.5)
    for _ in range(2):
        parameter.grad = torch.tensor([0.5, -4.0])
        optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([1.0 - 0.1, -2.0 + 0.8]))


@pytest.mark.parametrize("name", ["adamw", "adamw8bit"])
@pytest.mark.parametrize("decay", [0.0, 0.01, 0.5])
def test_adamws_first_step_is_of_the_learning_rate_after_decoupled_decay(name: str, decay: float) -> None:
    moved = stepped(optimizer_type=name, learning_rate=0.1, weight_decay=decay)
    expected = torch.tensor([1.0, -2.0]) * (1 - 0.1 * decay) - 0.1 * torch.tensor([1.0, -1.0])
    torch.testing.assert_close(moved, expected)


def test_adamw_takes_its_settings_from_the_config() -> None:
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = make(parameter, learning_rate=3e-4, betas=[0.8, 0.95], eps=1e-6, weight_decay=0.02)
    assert isinstance(optimizer, torch.optim.AdamW)
    [group] = optimizer.param_groups
    assert group["params"] == [parameter]
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (
        3e-4,
        (0.8, 0.95),
        1e-6,
        0.02,
    )


def test_eps_keeps_small_gradients_small() -> None:
    """With eps far above the gradients a step is lr * gradient / eps."""
    moved = stepped(learning_rate=0.1, eps=1e6, weight_decay=0.0)
    torch.testing.assert_close(moved - torch.tensor([1.0, -2.0]), torch.zeros(2), atol=1e-6, rtol=0)
