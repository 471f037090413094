from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.feed.substitute import ATTEMPTS, drawn_as, substitutes
from shards.dataset.manifest import Manifest
from shards.formats.row import Row
from shards.geometry import Grid

SIZES = (Grid(1, 2, 2), Grid(2, 2, 2), Grid(1, 2, 4), Grid(1, 1, 1), Grid(3, 4, 4))


def manifest_of(sizes: list[tuple[int, int | None]]) -> Manifest:
    """Samples of these sizes, by number: latents, and a reference or none."""
    return Manifest.from_rows(
        [
            Row(
                key=f"clip_{number}",
                shard="shards/000000.tar",
                offset=512,
                nbytes=10,
                checksum=number,
                grid=SIZES[size],
                text_tokens=3,
                fps=24.0,
                channels=8,
                text_width=48,
                references=() if reference is None else (SIZES[reference],),
            )
            for number, (size, reference) in enumerate(sizes)
        ]
    )


SAMPLES = st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 4)), min_size=1, max_size=40).map(
    manifest_of
)
PLACES = st.tuples(SAMPLES, st.integers(0, 2**64 - 1), st.integers(0, 9), st.integers(0, 1000))


def order(manifest: Manifest, seed: int, epoch: int, row: int, count: int = ATTEMPTS) -> list[int]:
    found = substitutes(manifest, manifest.tokens(), seed, epoch, row, count)
    assert found.dtype == np.int64
    return found.tolist()


@given(PLACES)
def test_others_are_tried_each_once_and_never_the_damaged_one(
    place: tuple[Manifest, int, int, int],
) -> None:
    manifest, seed, epoch, number = place
    row = number % len(manifest)
    found, tokens = order(manifest, seed, epoch, row), manifest.tokens()
    as_small = int((tokens <= tokens[row]).sum()) - 1
    assert len(set(found)) == len(found) == min(ATTEMPTS, as_small)
    assert row not in found
    assert (tokens[found] <= tokens[row]).all(), "a full pack stays within the cap"


@given(PLACES)
def test_the_same_size_comes_first_then_the_nearest_smaller(
    place: tuple[Manifest, int, int, int],
) -> None:
    manifest, seed, epoch, number = place
    row = number % len(manifest)
    tokens = manifest.tokens()

    def tier(other: int) -> tuple[int, int]:
        if tokens[other] == tokens[row] and (manifest.grid[other] == manifest.grid[row]).all():
            return 0, 0
        return 1, int(tokens[row] - tokens[other])

    found = [tier(other) for other in order(manifest, seed, epoch, row, count=len(manifest))]
    fit = [other for other in range(len(manifest)) if other != row and tokens[other] <= tokens[row]]
    assert found == sorted(map(tier, fit))


@given(PLACES, st.randoms(use_true_random=False))
def test_the_order_is_that_of_ids_and_not_of_rows(
    place: tuple[Manifest, int, int, int], dice: random.Random
) -> None:
    manifest, seed, epoch, number = place
    row = number % len(manifest)
    moved = list(range(len(manifest)))
    dice.shuffle(moved)
    columns = ("keys", "ids", "grid", "references")
    shuffled = replace(manifest, **{name: getattr(manifest, name)[moved] for name in columns})
    before = [manifest.keys[other] for other in order(manifest, seed, epoch, row)]
    after = [shuffled.keys[other] for other in order(shuffled, seed, epoch, moved.index(row))]
    assert before == after


@given(PLACES, st.integers(1, 40))
def test_a_longer_list_only_goes_on(place: tuple[Manifest, int, int, int], count: int) -> None:
    manifest, seed, epoch, number = place
    row = number % len(manifest)
    assert order(manifest, seed, epoch, row, count) == order(manifest, seed, epoch, row, 100)[:count]


def test_damaged_samples_spread_over_their_substitutes() -> None:
    """Otherwise one sample would be trained in place of a whole lost shard."""
    manifest = manifest_of([(0, None)] * 200)
    first = Counter(order(manifest, 42, epoch, row)[0] for row in range(200) for epoch in range(3))
    assert max(first.values()) < 20
    assert len(first) > 150


def test_a_sample_gets_another_substitute_in_another_epoch_and_run() -> None:
    manifest = manifest_of([(0, None)] * 200)
    places = [(seed, epoch) for seed in (1, 2) for epoch in range(3)]
    assert len({tuple(order(manifest, *place, 5)) for place in places}) == len(places)


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
def test_a_replacement_is_drawn_under_an_id_of_its_own(damaged: int, replacement: int) -> None:
    drawn = drawn_as(damaged, replacement)
    assert 0 <= drawn < 2**64
    assert drawn not in (damaged, replacement)
    assert drawn != drawn_as(damaged, replacement ^ 1)
    assert drawn != drawn_as(damaged ^ 1, replacement)
