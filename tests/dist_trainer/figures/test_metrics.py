from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.figures.metrics import ReducedStep, StepSums
from shards.plan import Step

KEYS = np.array([f"clip_{row}" for row in range(9)], dtype=object)
STEP = Step(index=11, rows=np.array([7, 2, 5, 0]), epochs=np.zeros(4, dtype=np.int64))


def reduced(losses: list[float], trained: list[int]) -> ReducedStep:
    return ReducedStep(np.array(losses), np.array(trained, float), STEP.rows, 0.0, 0.0, np.zeros(1))


def test_a_step_trained_once_passes() -> None:
    reduced([0.1, 0.0, 3.0, 0.2], [1, 1, 1, 1]).check(STEP, KEYS)


@pytest.mark.parametrize(
    ("trained", "named"),
    [([0, 1, 1, 1], ["clip_7"]), ([1, 1, 1, 2], ["clip_0"]), ([1, 0, 2, 1], ["clip_2", "clip_5"])],
    ids=["lost", "repeated", "both"],
)
def test_lost_and_repeated_samples_are_named(trained: list[int], named: list[str]) -> None:
    with pytest.raises(RuntimeError, match=r"^step 12: samples not trained exactly once: ") as caught:
        reduced([0.1] * 4, trained).check(STEP, KEYS)
    assert str(caught.value).endswith(": " + ", ".join(named))


def test_losses_that_are_not_finite_are_no_reason_to_end() -> None:
    reduced([0.1, float("nan"), float("inf"), 0.2], [1, 1, 1, 1]).check(STEP, KEYS)


@given(
    st.permutations(range(8)),
    st.lists(st.integers(1, 7), max_size=3),
    st.lists(st.floats(0, 1e3, width=32), min_size=8, max_size=8),
)
@pytest.mark.usefixtures("alone")
def test_the_loss_does_not_depend_on_packs_and_their_order(
    order: list[int], cuts: list[int], values: list[float]
) -> None:
    """Bit-equal: each sample has its own place, and the places are summed in the plan's order."""
    errors = torch.tensor(values)
    sums = StepSums(samples=8, ranks=1, rank=0, device=torch.device("cpu"))
    for part in np.split(np.array(order), sorted(cuts)):
        positions = torch.from_numpy(part)
        sums.add(positions, errors[positions], 10 * part)
    result = sums.reduce(data_wait_s=0.25, computed_s=0.5)
    assert result.losses.tolist() == errors.double().tolist()
    assert result.loss == float(errors.double().numpy().sum())
    assert result.trained.tolist() == [1.0] * 8
    assert result.rows.tolist() == list(range(0, 80, 10))
    assert result.data_wait_s == 0.25


@pytest.mark.usefixtures("alone")
def test_each_rank_reports_into_its_own_place_and_the_largest_counts() -> None:
    sums = StepSums(samples=2, ranks=3, rank=1, device=torch.device("cpu"))
    sums.add(torch.tensor([1]), torch.tensor([0.5], requires_grad=True), np.array([7]))
    result = sums.reduce(data_wait_s=2.0, computed_s=1.5)
    assert result.losses.tolist() == [0.0, 0.5]
    assert result.trained.tolist() == [0.0, 1.0]
    assert result.data_wait_s == 2.0
    assert result.computed_s.tolist() == [0.0, 1.5, 0.0]
    # A process that has imported torch has held more than 50 MB and less than a terabyte.
    assert 5e7 < result.peak_bytes < 1e12


@pytest.mark.usefixtures("alone")
def test_a_sample_trained_twice_is_seen() -> None:
    sums = StepSums(samples=4, ranks=1, rank=0, device=torch.device("cpu"))
    sums.add(torch.tensor([0, 1, 2, 3]), torch.ones(4), STEP.rows)
    sums.add(torch.tensor([2]), torch.ones(1), STEP.rows[2:3])
    with pytest.raises(RuntimeError, match=r"exactly once: clip_5$"):
        sums.reduce(0.0, 0.0).check(STEP, KEYS)


@pytest.mark.usefixtures("alone")
def test_any_row_of_a_large_manifest_is_kept_exactly() -> None:
    rows = np.array([0, 2**31 + 1, 2**52 + 1])
    sums = StepSums(samples=3, ranks=1, rank=0, device=torch.device("cpu"))
    sums.add(torch.tensor([0, 1, 2]), torch.ones(3), rows)
    assert sums.reduce(0.0, 0.0).rows.tolist() == rows.tolist()
