from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from shards.dataset.stats import Spread, _histogram, render, summarize
from shards.geometry import Bucket, Patch, Scale
from tests.support.datasets import write_dataset


def test_figures_of_a_known_dataset(tmp_path: Path) -> None:
    dataset = write_dataset(
        tmp_path,
        6,
        grids=[(1, 2, 4), (3, 2, 2), (3, 2, 2)],
        references=[None, (1, 2, 2)],
        text_lengths=[2, 4],
        fps=[10.0],
        scale=Scale(4, 8),
    )
    stats = summarize(dataset)
    assert (stats.samples, stats.images, stats.references) == (6, 2, 3)
    assert stats.nbytes == dataset.manifest.nbytes.sum()
    assert stats.seconds == pytest.approx(4 * 9 / 10)
    assert stats.total_tokens == 2 * 8 + 4 * 12 + 3 * 4
    assert stats.tokens == Spread(8, 12, 76 / 6, pytest.approx(16), 16)
    assert stats.text_tokens.mean == 3
    assert stats.sizes == ((Bucket(16, 16, 9), 4), (Bucket(32, 16, 1), 2))
    assert stats.histogram == ((8, 15, 4), (16, 31, 2))
    assert summarize(dataset, Patch(1, 2)).total_tokens * 4 == stats.total_tokens


@given(st.lists(st.integers(1, 2**40), min_size=1))
def test_every_length_is_in_the_one_bin_that_holds_it(lengths: list[int]) -> None:
    bins = _histogram(np.array(lengths, np.int64))
    assert [count for low, high, count in bins] == [
        sum(low <= n <= high for n in lengths) for low, high, _ in bins
    ]
    assert sum(count for _, _, count in bins) == len(lengths)
    assert bins[0][2]
    assert bins[-1][2]


def test_the_tables_show_the_figures(tmp_path: Path) -> None:
    grids = [(1, 1, n) for n in range(1, 16)]
    stats = summarize(write_dataset(tmp_path, 30, grids=grids))
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(render(stats))
    text = console.export_text()
    for expected in (
        "30 (30 images, 0 with a reference)",
        "8x8x1",
        "3 other sizes",
        "8 to 15",
        "text tokens",
    ):
        assert expected in text
