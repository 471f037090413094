from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import InputError
from shards.pack import Layout, check_cap, costs, pack

QUADRATIC = 6e-5
unhurried = settings(deadline=None)

lengths = st.lists(st.integers(1, 3000), min_size=1, max_size=60).map(
    lambda values: np.array(values, dtype=np.int64)
)


def flat(layout: Layout) -> np.ndarray:
    return np.concatenate([positions for micro_step in layout.packs for positions in micro_step])


def span(layout: Layout, cost: np.ndarray) -> int:
    return sum(max(int(cost[positions].sum()) for positions in micro_step) for micro_step in layout.packs)


@unhurried
@given(lengths, st.integers(1, 12), st.integers(0, 9000), st.booleans(), st.data())
def test_every_sample_is_laid_out_once_within_the_cap(
    tokens: np.ndarray, ranks: int, above: int, any_cost: bool, data: st.DataObject
) -> None:
    cap = int(tokens.max()) + above
    cost = costs(tokens, QUADRATIC)
    if any_cost:  # nothing may rest on cost growing with length
        cost = np.array(data.draw(st.lists(st.integers(1, 9999), min_size=len(tokens), max_size=len(tokens))))
    layout = pack(tokens, cost, ranks, cap)
    assert sorted(flat(layout).tolist()) == list(range(len(tokens)))
    for micro_step in layout.packs:
        assert len(micro_step) == ranks
        assert any(len(positions) for positions in micro_step)
        for positions in micro_step:
            assert positions.dtype == np.int64
            assert np.all(np.diff(positions) > 0)
            assert int(tokens[positions].sum()) <= cap
    assert layout.useful == pytest.approx(float(Fraction(int(cost.sum()), ranks * span(layout, cost))))
    empty = sum(len(positions) == 0 for micro_step in layout.packs for positions in micro_step)
    assert layout.idle == pytest.approx(empty / (ranks * len(layout.packs)))


@unhurried
@given(lengths, st.integers(1, 12))
def test_with_room_to_spare_one_micro_step_is_within_twice_the_best(tokens: np.ndarray, ranks: int) -> None:
    cost = costs(tokens, QUADRATIC)
    layout = pack(tokens, cost, ranks, int(tokens.sum()))
    bound = max(int(cost.max()), -(-int(cost.sum()) // ranks))
    assert span(layout, cost) < 2 * bound


@unhurried
@given(lengths, st.integers(1, 8))
def test_the_same_step_is_always_laid_out_the_same(tokens: np.ndarray, ranks: int) -> None:
    cost, cap = costs(tokens, QUADRATIC), int(tokens.max()) * 2
    once, again = pack(tokens, cost, ranks, cap), pack(tokens.copy(), cost.copy(), ranks, cap)
    assert [[p.tolist() for p in m] for m in once.packs] == [[p.tolist() for p in m] for m in again.packs]


@pytest.mark.parametrize(
    ("tokens", "ranks", "cap", "micro_steps", "useful", "idle"),
    [
        ([100] * 8, 8, 100, 1, 1.0, 0.0),
        ([100] * 8, 4, 200, 1, 1.0, 0.0),
        ([100] * 8, 4, 100, 2, 1.0, 0.0),
        ([100] * 3, 8, 100, 1, 3 / 8, 5 / 8),
        ([100], 1, 100, 1, 1.0, 0.0),
        ([100] * 9, 4, 100, 3, 9 / 12, 3 / 12),
        ([400, 300, 200, 100] * 2, 4, 500, 1, 1.0, 0.0),
        # One dear sample sets the pace: the cheap ones fill the other rank, in one micro-step.
        ([800] + [100] * 8, 2, 800, 1, 1.0, 0.0),
        # The cap forces a second micro-step; dear with dear and cheap with cheap wastes nothing.
        ([600, 600, 500, 500], 2, 1000, 2, 1.0, 0.0),
        # No two of these fit together: the count of packs, not the sum of tokens, sets the micro-steps.
        ([600] * 4, 2, 1000, 2, 1.0, 0.0),
    ],
)
def test_known_layouts(
    tokens: list[int], ranks: int, cap: int, micro_steps: int, useful: float, idle: float
) -> None:
    lengths = np.array(tokens, dtype=np.int64)
    layout = pack(lengths, costs(lengths, 0.0), ranks, cap)
    assert len(layout.packs) == micro_steps
    assert layout.useful == pytest.approx(useful)
    assert layout.idle == pytest.approx(idle)


def test_equal_samples_are_dealt_by_position() -> None:
    tokens = np.full(4, 10, dtype=np.int64)
    layout = pack(tokens, costs(tokens, 0.0), 2, 10)
    assert [[p.tolist() for p in micro_step] for micro_step in layout.packs] == [[[0], [1]], [[2], [3]]]


@pytest.mark.parametrize(
    ("quadratic", "micro_steps", "useful"),
    [
        # 50 + 30 and 50 + 20 + 10 tokens cost the same without attention: nothing to gain from a second one.
        (0.0, 1, 1.0),
        # With attention the even split of tokens is uneven in cost, and two finer micro-steps beat it.
        (0.01, 2, 0.98),
    ],
)
def test_more_micro_steps_than_the_cap_demands_are_taken_only_when_they_pay(
    quadratic: float, micro_steps: int, useful: float
) -> None:
    tokens = np.array([50, 30, 50, 10, 20], dtype=np.int64)
    layout = pack(tokens, costs(tokens, quadratic), 2, 120)
    assert len(layout.packs) == micro_steps
    assert layout.useful == pytest.approx(useful, abs=0.005)


@pytest.mark.parametrize(("ranks", "samples"), [(8, 80), (64, 640), (64, 2048)])
def test_a_cap_just_above_the_longest_sample_falls_back_and_drops_nothing(ranks: int, samples: int) -> None:
    tokens = 160 + (np.arange(samples, dtype=np.int64) * 7919) % 28881
    cap = int(tokens.max()) + 100
    layout = pack(tokens, costs(tokens, QUADRATIC), ranks, cap)
    assert sorted(flat(layout).tolist()) == list(range(samples))
    assert all(int(tokens[p].sum()) <= cap for m in layout.packs for p in m)
    fewest = -(-int(tokens.sum()) // (ranks * cap))
    assert fewest <= len(layout.packs) <= fewest + 2


def test_a_sample_beyond_the_cap_is_refused() -> None:
    tokens = np.array([5, 12, 3], dtype=np.int64)
    with pytest.raises(InputError, match="sample 1 of the step has 12 tokens, more than the cap of 10"):
        pack(tokens, costs(tokens, 0.0), 2, 10)


@pytest.mark.parametrize(("samples", "ranks"), [(0, 2), (3, 0)])
def test_a_step_without_samples_or_ranks_is_refused(samples: int, ranks: int) -> None:
    tokens = np.full(samples, 5, dtype=np.int64)
    with pytest.raises(ValueError, match=f"{samples} samples on {ranks} ranks"):
        pack(tokens, tokens, ranks, 10)


@given(st.integers(1, 200_000), st.floats(0, 1e-3))
def test_costs_follow_the_formula(length: int, quadratic: float) -> None:
    cost = costs(np.array([length]), quadratic)
    assert cost.dtype == np.int64
    # Half a unit of quadratic at 2**-30, and one of the result at 2**-10, are rounded away.
    tolerance = (length * length * 2**-31) + 2**-10
    assert cost[0] / 1024 == pytest.approx(length + quadratic * length**2, abs=tolerance, rel=1e-12)


@pytest.mark.parametrize(("quadratic", "length"), [(-1e-9, 10), (1e-2, 10**6)])
def test_costs_outside_64_bits_are_refused(quadratic: float, length: int) -> None:
    with pytest.raises(ValueError, match="quadratic"):
        costs(np.array([length]), quadratic)


def test_check_cap_names_the_longest_samples_and_the_ways_out() -> None:
    keys = [f"clip{n}" for n in range(9)]
    tokens = np.array([10, 900, 20, 901, 902, 903, 904, 905, 30], dtype=np.int64)
    with pytest.raises(InputError) as refusal:
        check_cap(keys, tokens, 100)
    message = str(refusal.value)
    assert message.startswith("6 of 9 samples")
    for key, count in (("clip7", 905), ("clip6", 904), ("clip5", 903), ("clip4", 902), ("clip3", 901)):
        assert f"{key} ({count} tokens)" in message
    assert "clip1 " not in message
    assert "and 1 more" in message
    assert "batching.max_tokens_per_pack to at least 905" in message
    assert "smaller buckets" in message
    assert "sequence parallelism" in message
    assert "\n" not in message


def test_check_cap_accepts_samples_of_exactly_the_cap() -> None:
    check_cap(["a", "b"], np.array([100, 99]), 100)
