"""The optimizer Muon for convolutions; torch.optim's own takes matrices alone."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Coefficients of K. Jordan's quintic iteration, which brings all singular values near 1.
_A, _B, _C = 3.4445, -4.7750, 2.0315
_ROUNDS = 5


class Muon(torch.optim.Optimizer):
    """Steps along momentum made orthogonal: each weight [O, ...] is seen as a matrix of O rows."""

    def __init__(self, weights: Iterable[nn.Parameter], lr: float, momentum: float = 0.9) -> None:
        super().__init__(weights, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One step, from the gradients there are."""
        for group in self.param_groups:
            for weight in group["params"]:
                mean = self.state[weight].setdefault("mean", torch.zeros_like(weight))
                mean.lerp_(weight.grad, 1 - group["momentum"])
                ahead = weight.grad.lerp(mean, group["momentum"]).flatten(1)
                stretch = max(1.0, ahead.shape[0] / ahead.shape[1]) ** 0.5
                weight.add_(_orthogonal(ahead).view_as(weight), alpha=-group["lr"] * stretch)


def _orthogonal(matrix: Tensor) -> Tensor:
    """A matrix with the singular vectors of `matrix` [M,N] and singular values near 1."""
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if tall else matrix
    x = x / (x.norm() + 1e-9)
    for _ in range(_ROUNDS):
        square = x @ x.T
        x = _A * x + (_B * square + _C * square @ square) @ x
    return x.T if tall else x
