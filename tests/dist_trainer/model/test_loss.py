from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_trainer.model import loss
from shards.errors import InputError


def _pack(lengths: list[int], skipped: list[int], target: torch.Tensor) -> SimpleNamespace:
    ends = np.cumsum(lengths)
    kept = [length - skip for length, skip in zip(lengths, skipped, strict=True)]
    index = torch.cat([torch.arange(end - keep, end) for end, keep in zip(ends.tolist(), kept, strict=True)])
    counts = torch.tensor(kept)
    return SimpleNamespace(loss_index=index, loss_lengths=counts, target=target[index])


@given(st.lists(st.tuples(st.integers(1, 30), st.integers(0, 29)), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_sums_cover_the_loss_tokens_of_each_sample_and_nothing_else(sizes: list[tuple[int, int]]) -> None:
    lengths = [length for length, _ in sizes]
    skipped = [min(skip, length - 1) for length, skip in sizes]
    generator = torch.Generator().manual_seed(0)
    target, prediction = (torch.randn(sum(lengths), 4, generator=generator) for _ in range(2))
    prediction.requires_grad_()
    sums = loss.sample_sums(prediction, _pack(lengths, skipped, target))
    errors = [
        part[skip:].square() for part, skip in zip((prediction - target).split(lengths), skipped, strict=True)
    ]
    torch.testing.assert_close(sums, torch.stack([error.sum() for error in errors]))
    assert sums.dtype == torch.float32

    (gradient,) = torch.autograd.grad(sums.sum(), prediction)
    (expected,) = torch.autograd.grad(sum(error.sum() for error in errors), prediction)
    torch.testing.assert_close(gradient, expected)


def test_long_sums_keep_their_precision() -> None:
    tokens = 40_000
    target = torch.zeros(tokens, 128)
    prediction = torch.rand(tokens, 128, generator=torch.Generator().manual_seed(0))
    sums = loss.sample_sums(prediction, _pack([tokens], [0], target))
    exact = prediction.double().square().sum().item()
    assert abs(sums.item() - exact) / exact < 1e-6


def test_loss_weights_make_means_over_the_step() -> None:
    elements, sums = np.array([10, 40]), np.array([20.0, 40.0])
    assert (sums * loss.loss_weights(elements, "sample")).sum() == pytest.approx((2.0 + 1.0) / 2)
    assert (sums * loss.loss_weights(elements, "token")).sum() == pytest.approx(60.0 / 50)
    with pytest.raises(InputError, match="loss_weighting"):
        loss.loss_weights(elements, "both")  # type: ignore[arg-type]
