from __future__ import annotations

import hashlib
import json
import math
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import InputError
from shards.hashing import mix
from shards.plan import Batching, Plan, Step

# A busy machine is no failure.
unhurried = settings(deadline=None)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    tokens = np.array(draw(st.lists(st.integers(1, 60), min_size=1, max_size=40)), dtype=np.int64)
    by_samples = draw(st.booleans())
    # Steps of up to about three epochs.
    least, most = 2 * int(tokens.max()), 2 * int(tokens.max()) + 2 * int(tokens.sum())
    batching = Batching(
        samples_per_step=draw(st.integers(1, 3 * len(tokens))) if by_samples else None,
        tokens_per_step=None if by_samples else draw(st.integers(least, most)),
        mix=draw(st.sampled_from(("random", "similar"))),
        window=draw(st.integers(1, 100)),
    )
    ids = mix(draw(st.integers(0, 99)), np.arange(len(tokens), dtype=np.uint64))
    return Plan(ids, tokens, batching, draw(st.integers(-(2**65), 2**65)))


def synthetic(samples: int) -> tuple[np.ndarray, np.ndarray]:
    ids = mix(11, np.arange(samples, dtype=np.uint64))
    return ids, (mix(12, ids) % np.uint64(500)).astype(np.int64) + 20


def same(left: Step, right: Step) -> bool:
    return (
        left.index == right.index
        and np.array_equal(left.rows, right.rows)
        and np.array_equal(left.epochs, right.epochs)
    )


@unhurried
@given(plans())
def test_every_epoch_holds_every_sample_exactly_once(plan: Plan) -> None:
    epochs = 3
    # `similar` is only complete over whole windows, which reach at most one epoch and one step further.
    steps = math.ceil((epochs + 1) * plan.steps_per_epoch) + 1
    seen: Counter[tuple[int, int]] = Counter()
    for k in range(steps):
        step = plan.step(k)
        seen.update(zip(step.epochs.tolist(), step.rows.tolist(), strict=True))
    assert set(seen.values()) == {1}
    wanted = {(epoch, row) for epoch in range(epochs) for row in range(len(plan.ids))}
    assert wanted <= set(seen)


@unhurried
@given(plans(), st.integers(0, 60))
def test_a_step_has_the_size_the_batching_asks_for(plan: Plan, k: int) -> None:
    step = plan.step(k)
    assert step.rows.dtype == step.epochs.dtype == np.int64
    if plan.batching.samples_per_step is not None:
        assert len(step.rows) == plan.batching.samples_per_step
    else:
        assert plan.batching.tokens_per_step is not None
        assert len(step.rows) > 0
        slack = 2 * int(plan.tokens.max())
        assert abs(int(plan.tokens[step.rows].sum()) - plan.batching.tokens_per_step) < slack


@unhurried
@given(plans(), st.lists(st.integers(0, 20), min_size=1, max_size=6))
def test_asking_for_any_step_equals_walking_there(plan: Plan, wanted: list[int]) -> None:
    walked = [plan.step(k) for k in range(max(wanted) + 1)]
    fresh = Plan(plan.ids, plan.tokens, plan.batching, plan.seed)
    assert all(same(fresh.step(k), walked[k]) for k in wanted)


@unhurried
@given(plans(), st.randoms(use_true_random=False))
def test_shuffling_the_manifest_moves_rows_but_not_samples(plan: Plan, random: Any) -> None:
    shuffle = np.array(random.sample(range(len(plan.ids)), len(plan.ids)))
    moved = Plan(plan.ids[shuffle], plan.tokens[shuffle], plan.batching, plan.seed)
    assert moved.fingerprint == plan.fingerprint
    for k in range(4):
        before, after = plan.step(k), moved.step(k)
        assert np.array_equal(moved.ids[after.rows], plan.ids[before.rows])
        assert np.array_equal(after.epochs, before.epochs)


@unhurried
@given(plans(), st.integers(0, 60))
def test_a_step_trains_samples_of_the_epoch_it_lies_in(plan: Plan, k: int) -> None:
    epoch = math.floor(k / plan.steps_per_epoch + 1e-9)
    # A window, hence a step of it, can reach an epoch to either side, and a long step as far as it spans.
    reach = 1 + math.ceil(1 / plan.steps_per_epoch)
    assert np.all(np.abs(plan.step(k).epochs - epoch) <= reach)


@pytest.mark.parametrize("chosen", ["random", "similar"])
def test_a_step_larger_than_the_data_set_spans_epochs(chosen: Any) -> None:
    ids, tokens = synthetic(5)
    step = Plan(ids, tokens, Batching(12, None, chosen), 0).step(1)
    assert Counter(step.epochs.tolist()) == {2: 3, 3: 5, 4: 4}
    assert Counter(step.rows.tolist()).total() == 12


def test_epochs_and_seeds_have_their_own_order() -> None:
    ids, tokens = synthetic(500)
    orders = [Plan(ids, tokens, Batching(500, None), seed).step(k).rows for seed in (0, 1) for k in (0, 1)]
    agree = [np.mean(a == b) for i, a in enumerate(orders) for b in orders[:i]]
    assert max(agree) < 0.05


def test_random_steps_are_fair_draws() -> None:
    ids, tokens = synthetic(20_000)
    plan = Plan(ids, tokens, Batching(200, None), 5)
    means = [plan.tokens[plan.step(k).rows].mean() for k in range(100)]
    expected_spread = tokens.std() / np.sqrt(200)
    assert np.std(means) == pytest.approx(expected_spread, rel=0.25)


@pytest.mark.parametrize("batching", [(64, None), (None, 20_000)])
def test_similar_steps_hold_neighbours_in_length_and_come_in_random_order(batching: tuple[Any, Any]) -> None:
    ids, tokens = synthetic(10_000)
    plan = Plan(ids, tokens, Batching(*batching, "similar", window=4096), 0)
    steps = [tokens[plan.step(k).rows] for k in range(60)]
    spreads = [int(step.max() - step.min()) for step in steps]
    assert np.median(spreads) < 0.05 * (tokens.max() - tokens.min())
    means = np.array([step.mean() for step in steps])
    assert abs(np.corrcoef(np.arange(60), means)[0, 1]) < 0.5
    assert means.max() > 3 * means.min()


@pytest.mark.parametrize(
    ("window", "mixes"),
    [(64, 1), (100, 1), (640, 10), (10**9, 15)],
    ids=["one", "rounded", "ten", "an epoch"],
)
def test_a_window_is_whole_steps_and_never_longer_than_an_epoch(window: int, mixes: int) -> None:
    ids, tokens = synthetic(1000)
    similar = Plan(ids, tokens, Batching(64, None, "similar", window), 0)
    random = Plan(ids, tokens, Batching(64, None), 0)
    held = [frozenset(plan.step(k).rows.tolist()) for plan in (similar, random) for k in range(mixes)]
    assert frozenset().union(*held[:mixes]) == frozenset().union(*held[mixes:])
    if mixes > 1:
        assert frozenset().union(*held[: mixes - 1]) != frozenset().union(*held[mixes : 2 * mixes - 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples_per_step": None, "tokens_per_step": None}, "exactly one"),
        ({"samples_per_step": 1, "tokens_per_step": 1}, "exactly one"),
        ({"samples_per_step": 0, "tokens_per_step": None}, "samples_per_step must be at least 1, got 0"),
        ({"samples_per_step": None, "tokens_per_step": -3}, "tokens_per_step must be at least 1, got -3"),
        ({"samples_per_step": 1, "tokens_per_step": None, "window": 0}, "window must be at least 1"),
        ({"samples_per_step": 1, "tokens_per_step": None, "mix": "sorted"}, "mix must be .* got 'sorted'"),
    ],
)
def test_a_batching_that_contradicts_itself_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Batching(**arguments)


@pytest.mark.parametrize(
    ("ids", "tokens", "batching", "message"),
    [
        ([], [], Batching(1, None), "no samples"),
        ([4, 5], [3, 0], Batching(1, None), "row 1 .* 0 tokens"),
        ([7, 4, 7], [3, 3, 3], Batching(1, None), "rows 0 and 2 .* same sample id"),
        ([4, 5], [30, 50], Batching(None, 49), "is 49 .* 50 tokens.* at least 50"),
        ([4, 5], [30, 50], Batching(None, 99, "similar"), "is 99 .* 50 tokens.* at least 100"),
    ],
)
def test_data_that_cannot_be_planned_is_refused(
    ids: list[int], tokens: list[int], batching: Batching, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        Plan(np.array(ids, dtype=np.uint64), np.array(tokens, dtype=np.int64), batching, 0)


def test_the_longest_sample_may_fill_a_step_of_tokens() -> None:
    ids, tokens = np.arange(3, dtype=np.uint64), np.array([50, 1, 50])
    assert len(Plan(ids, tokens, Batching(None, 50), 0).step(0).rows) >= 1
    assert len(Plan(ids, tokens, Batching(None, 100, "similar"), 0).step(0).rows) >= 1


def test_steps_before_the_first_are_refused() -> None:
    plan = Plan(*synthetic(4), Batching(1, None), 0)
    with pytest.raises(IndexError, match="-1"):
        plan.step(-1)


def test_the_fingerprint_tells_every_input_apart() -> None:
    ids, tokens = synthetic(30)
    other_ids, other_tokens = ids.copy(), tokens.copy()
    other_ids[3] += np.uint64(1)
    other_tokens[[3, 4]] = tokens[[4, 3]] + [1, -1]
    variants = [
        Plan(ids, tokens, Batching(4, None), 0),
        Plan(ids, tokens, Batching(4, None), 1),
        Plan(ids, tokens, Batching(5, None), 0),
        Plan(ids, tokens, Batching(None, 2000), 0),
        Plan(ids, tokens, Batching(4, None, "similar"), 0),
        Plan(ids, tokens, Batching(4, None, "similar", 8), 0),
        Plan(other_ids, tokens, Batching(4, None), 0),
        Plan(ids, other_tokens, Batching(4, None), 0),
        Plan(ids[:-1], tokens[:-1], Batching(4, None), 0),
    ]
    assert len({plan.fingerprint for plan in variants}) == len(variants)
    # The window means nothing to random steps, so changing it must not stop a resume.
    assert Plan(ids, tokens, Batching(4, None, window=8), 0).fingerprint == variants[0].fingerprint


def digests() -> dict[str, str]:
    """A hash of 200 steps for each kind of batching; also run by a subprocess below."""
    ids, tokens = synthetic(5000)
    found = {}
    for name, sizes in (("samples", (48, None)), ("tokens", (None, 14_000))):
        for chosen in ("random", "similar"):
            plan = Plan(ids, tokens, Batching(*sizes, chosen, window=1000), 42)
            digest = hashlib.sha256(plan.fingerprint.encode())
            for k in range(200):
                step = plan.step(k)
                digest.update(np.stack([step.rows, step.epochs]).astype("<i8").tobytes())
            found[f"{name} {chosen}"] = digest.hexdigest()[:16]
    return found


GOLDEN = {
    "samples random": "01c36b8414ae63b2",
    "samples similar": "dd5fc1c46a404c8d",
    "tokens random": "1db4b3d735ab01db",
    "tokens similar": "f278cd17d9437a9a",
}


def test_the_order_is_the_one_earlier_runs_trained() -> None:
    assert digests() == GOLDEN, (
        "runs started before this change would resume on other samples: raise plan._VERSION"
    )


def test_steps_are_bit_identical_without_vector_instructions() -> None:
    code = (
        "import json, numpy; from tests.shards.test_plan import digests; "
        "found = numpy.show_config(mode='dicts')['SIMD Extensions'].get('found', []); "
        "print(json.dumps([found, digests()]))"
    )
    dispatched = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    if not dispatched:
        pytest.skip("NumPy dispatches nothing beyond its baseline on this processor")
    environment = {
        **os.environ,
        "NPY_DISABLE_CPU_FEATURES": " ".join(dispatched),
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    found, hashes = json.loads(run.stdout)
    assert found == []
    assert hashes == digests()
