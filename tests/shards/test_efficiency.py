from __future__ import annotations

import io
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from shards import efficiency
from shards.efficiency import Efficiency, advice, outlook, render, render_outlook, report
from shards.errors import InputError
from shards.pack import Layout
from shards.plan import Batching
from tests.bench.bench_plan import (
    QUADRATIC,
    bucket_all_ranks,
    bucket_per_rank,
    random_padded,
    random_single,
    realistic,
    step_for,
)

DATA = realistic(20_000)
CAP = 2 * int(DATA.tokens.max())


def measured(batching: Batching, ranks: list[int], **options: Any) -> list[Efficiency]:
    return report(DATA.tokens, DATA.ids, batching, ranks, CAP, QUADRATIC, **options)


def row(**changes: Any) -> Efficiency:
    base = Efficiency("random", 64, 100.0, 50, 128.0, 1.0, 0.5, 2.0, 0.0, 0.0, 0.0, 0.97)
    return replace(base, **changes)


@pytest.mark.parametrize("ranks", [8, 64, 256])
@pytest.mark.parametrize("caps_per_rank", [1.5, 2, 3])
def test_random_steps_of_two_or_more_micro_steps_train_99_percent(ranks: int, caps_per_rank: float) -> None:
    size = step_for(DATA, ranks, CAP, caps_per_rank)
    (found,) = measured(Batching(size, None), [ranks], compare=False, max_steps=10)
    assert found.micro_steps >= 2
    assert found.useful >= 0.99
    assert found.dropped == found.padding == found.idle == 0


@pytest.mark.parametrize("ranks", [8, 64])
def test_similar_steps_of_one_sample_a_rank_train_97_percent_where_random_ones_waste_most(ranks: int) -> None:
    (found,) = measured(Batching(ranks, None, "similar"), [ranks])
    assert found.useful >= 0.97
    assert found.dropped == found.padding == found.idle == 0
    assert found.other_useful is not None
    assert found.other_useful < 0.4


def test_common_batchings_waste_or_drop_on_the_same_data() -> None:
    # What the goals above are measured against; also shows that the data is as uneven as real data.
    assert random_single(DATA, 64).useful < 0.2
    padded = random_padded(DATA, 64)
    assert padded.useful < 0.2
    assert padded.padding > 0.4
    assert bucket_per_rank(DATA, 64).dropped > 0.5
    assert bucket_all_ranks(DATA, 64).dropped > 0.5


@pytest.mark.parametrize(
    "batching", [Batching(300, None), Batching(None, 900_000), Batching(300, None, "similar")]
)
def test_one_row_for_each_number_of_ranks(batching: Batching) -> None:
    rows = measured(batching, [1, 8, 1000], max_steps=5)
    assert [found.ranks for found in rows] == [1, 8, 1000]
    assert {found.steps_measured for found in rows} == {5}
    assert len({(found.steps_per_epoch, found.samples_per_step) for found in rows}) == 1
    assert rows[0].useful == pytest.approx(1)
    assert rows[0].balance == pytest.approx(1)
    assert rows[2].idle > 0.5
    assert all(found.useful == pytest.approx(1 / found.balance, rel=0.2) for found in rows)


def test_a_short_epoch_is_laid_out_whole() -> None:
    tokens, ids = DATA.tokens[:100], DATA.ids[:100]
    for samples, steps in ((30, 4), (1000, 1)):
        (found,) = report(tokens, ids, Batching(samples, None), [2], CAP, QUADRATIC)
        assert found.steps_measured == steps
        assert found.samples_per_step == samples


def test_padding_and_drops_are_counted_in_the_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, ids = np.full(40, 100, dtype=np.int64), DATA.ids[:40]

    def faulty(tokens: np.ndarray, cost: np.ndarray, ranks: int, cap: int) -> Layout:
        first, rest = np.array([0, 1]), np.array([1, 2])
        return Layout(((first, rest),), useful=1.0, idle=0.0)

    monkeypatch.setattr(efficiency, "pack", faulty)
    (found,) = report(tokens, ids, Batching(4, None), [2], 1000, 0.0, compare=False)
    assert found.dropped == pytest.approx(1 / 4)  # sample 3 is in no pack
    assert found.padding == pytest.approx(1 / 4)  # sample 1 is in two


def test_a_mix_the_batch_size_cannot_serve_is_left_out_of_the_comparison() -> None:
    batching = Batching(None, int(1.5 * DATA.tokens.max()))
    (found,) = measured(batching, [8], max_steps=5)
    assert found.other_useful is None
    with pytest.raises(InputError, match="twice the longest"):
        measured(replace(batching, mix="similar"), [8])


def test_advice_names_another_mix_only_where_it_gains() -> None:
    sentence = advice([row(useful=0.5, other_useful=0.505)])
    assert sentence is not None
    assert "similar" not in sentence


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(useful=0.91)], None),
        ([row(mix="similar", useful=0.5)], None),
        ([], None),
        ([row(useful=0.5)], ["50% of the time of 64 ranks", "128 samples", "'similar' would use 97.0%"]),
        ([row(useful=0.8), row(useful=0.3, ranks=128)], ["70%", "128 ranks", "shared out evenly"]),
        ([row(useful=0.1, ranks=512), row(useful=0.4)], ["60%", "64 ranks"]),
        ([row(useful=0.1, ranks=512)], ["90%", "fewer samples than ranks"]),
        ([row(useful=0.5, other_useful=None)], ["twice the longest sample"]),
    ],
)
def test_advice_speaks_up_when_random_wastes_more_than_a_tenth(
    rows: list[Efficiency], words: list[str] | None
) -> None:
    sentence = advice(rows)
    if words is None:
        assert sentence is None
        return
    assert sentence is not None
    assert "\n" not in sentence
    assert all(word in sentence for word in words)


def test_the_table_says_when_it_rests_on_some_of_the_steps() -> None:
    def text(rows: list[Efficiency]) -> str:
        console = Console(width=200, record=True, quiet=False, file=open("/dev/null", "w"))  # noqa: SIM115
        console.print(render(rows))
        return console.export_text()

    sampled, whole = text([row()]), text([row(steps_measured=100, other_useful=None)])
    assert "from 50 evenly spaced steps of an epoch's 100" in sampled
    assert "evenly spaced" not in whole
    assert "97.0" in sampled
    assert "97.0" not in whole


def test_the_outlook_needs_no_description_of_a_run_and_takes_steps_that_the_dataset_has() -> None:
    tokens = np.array([160, 4032, 29040] * 40, np.int64)
    rows = outlook(tokens, np.arange(len(tokens), dtype=np.uint64))
    assert [(row.ranks, row.samples_per_step) for row in rows] == [
        *((8, 8), (8, 64)),
        *((64, 64), (64, 120)),
        (512, 120),
    ]
    assert all(row.mix == "random" and row.other_useful is not None and row.dropped == 0 for row in rows)
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(render_outlook(rows))
    assert "mix similar %" in console.export_text()
