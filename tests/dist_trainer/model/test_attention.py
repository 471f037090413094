from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_trainer.model.attention import Lengths, attend


def _pack(queries: Lengths, keys: Lengths, heads: int = 2, width: int = 8, dtype=torch.float32, device="cpu"):
    generator = torch.Generator().manual_seed(0)

    def tensor(rows: int) -> torch.Tensor:
        return torch.randn(rows, heads, width, generator=generator).to(device, dtype).requires_grad_()

    return tensor(queries.total), tensor(keys.total), tensor(keys.total)


def _masked(q, k, v, queries: Lengths, keys: Lengths) -> torch.Tensor:
    """The same by softmax over one dense matrix, everything outside the samples' blocks at minus infinity."""
    owner_q = torch.repeat_interleave(torch.arange(len(queries.values)), torch.tensor(queries.values))
    owner_k = torch.repeat_interleave(torch.arange(len(keys.values)), torch.tensor(keys.values))
    scores = torch.einsum("nhd,mhd->hnm", q, k) / q.shape[-1] ** 0.5
    scores = scores.masked_fill(owner_q[:, None] != owner_k[None], float("-inf"))
    return torch.einsum("hnm,mhd->nhd", scores.softmax(-1), v)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=1, max_size=5))
def test_attention_stays_inside_each_sample(sizes: list[tuple[int, int]]) -> None:
    queries, keys = (Lengths.of(side) for side in zip(*sizes, strict=True))
    q, k, v = _pack(queries, keys)
    expected = _masked(q, k, v, queries, keys)
    found = attend(q, k, v, queries, keys)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    weights = torch.randn_like(expected)
    for mine, theirs in zip(
        torch.autograd.grad((found * weights).sum(), (q, k, v)),
        torch.autograd.grad((expected * weights).sum(), (q, k, v)),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_lengths_know_where_samples_end_on_host_and_device() -> None:
    lengths = Lengths.of([3, 1, 4])
    assert lengths.cumulative.tolist() == [0, 3, 4, 8]
    assert lengths.cumulative.dtype == torch.int32
    assert (lengths.values, lengths.longest, lengths.total) == ((3, 1, 4), 4, 8)


@pytest.mark.parametrize("values", [[], [3, 0], [-1]])
def test_a_sample_without_tokens_is_refused(values: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one token"):
        Lengths.of(values)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_flash_kernel_agrees_with_the_loop() -> None:
    queries, keys = Lengths.of([130, 7, 64]), Lengths.of([12, 256, 1])
    q, k, v = _pack(queries, keys, heads=4, width=64)
    expected = _masked(q, k, v, queries, keys)
    half = [x.detach().to("cuda", torch.bfloat16).requires_grad_() for x in (q, k, v)]
    found = attend(*half, queries.to("cuda"), keys.to("cuda"))
    torch.testing.assert_close(found.float().cpu(), expected, rtol=2e-2, atol=2e-2)
    for mine, theirs in zip(
        torch.autograd.grad(found.sum(), half), torch.autograd.grad(expected.sum(), (q, k, v)), strict=True
    ):
        torch.testing.assert_close(mine.float().cpu(), theirs, rtol=5e-2, atol=5e-2)
