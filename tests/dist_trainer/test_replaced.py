from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from dist_trainer.feed.substitute import substitutes
from dist_trainer.replaced import Ledger, Replaced, open_ledger
from dist_trainer.rundir import RunFolder
from shards.dataset.opened import Dataset
from shards.errors import DamagedSample, InputError
from shards.plan import Batching, Plan, Step
from tests.support.gatherings import at_once, in_memory

SEED = 42


@pytest.fixture(scope="module")
def plan(paired_dataset: Dataset) -> Plan:
    manifest = paired_dataset.manifest
    return Plan(manifest.ids, manifest.tokens(), Batching(7, None), SEED)


def trained(plan: Plan, dataset: Dataset, step: Step, attempts: dict[int, int]) -> np.ndarray:
    """The rows of a step in which the position's n-th substitute was trained, for each position of `attempts`."""
    rows = step.rows.copy()
    for position, attempt in attempts.items():
        row, epoch = int(step.rows[position]), int(step.epochs[position])
        rows[position] = substitutes(dataset.manifest, plan.tokens, SEED, epoch, row)[attempt]
    return rows


def settle(ledger: Ledger, plan: Plan, dataset: Dataset, k: int, attempts: dict[int, int]) -> list[Replaced]:
    step = plan.step(k)
    return ledger.settle(step, trained(plan, dataset, step, attempts), {})


def test_a_step_of_sound_samples_leaves_no_entry(plan: Plan, paired_dataset: Dataset) -> None:
    ledger = Ledger(plan, paired_dataset, limit=0)
    assert settle(ledger, plan, paired_dataset, 0, {}) == []
    assert (ledger.total, list(ledger.damaged)) == (0, [])


def test_an_entry_names_both_samples_and_what_was_tried_between(plan: Plan, paired_dataset: Dataset) -> None:
    step, manifest = plan.step(3), paired_dataset.manifest
    rows = trained(plan, paired_dataset, step, {2: 0, 5: 2})
    first, second = int(step.rows[2]), int(step.rows[5])
    error = DamagedSample("shards/000000.tar", manifest.keys[first], "xxh3_64 checksum", "aa", "bb")
    ledger = Ledger(plan, paired_dataset, limit=9)
    one, other = ledger.settle(step, rows, {first: error})
    assert one == Replaced(
        step=4,
        epoch=int(step.epochs[2]),
        id=int(manifest.ids[first]),
        key=manifest.keys[first],
        shard=manifest.shards[manifest.shard[first]],
        wrong="xxh3_64 checksum: expected aa, found bb",
        replacement_id=int(manifest.ids[rows[2]]),
        replacement_key=manifest.keys[rows[2]],
    )
    tried = substitutes(manifest, plan.tokens, SEED, int(step.epochs[5]), second)[:2]
    assert (other.key, other.wrong) == (manifest.keys[second], None), "read by another rank"
    assert other.also_damaged == tuple(manifest.keys[tried])
    assert ledger.total == 2
    assert list(ledger.damaged) == [one.key, other.key, *(k for k in other.also_damaged if k != one.key)]


def test_a_sample_met_again_counts_as_one_damaged_sample(plan: Plan, paired_dataset: Dataset) -> None:
    ledger = Ledger(plan, paired_dataset, limit=1)
    row = int(plan.step(0).rows[0])
    places = [(k, int(position)) for k in range(20) for position in np.flatnonzero(plan.step(k).rows == row)]
    assert len(places) > 2
    for k, position in places:
        settle(ledger, plan, paired_dataset, k, {position: 0})
    assert (ledger.total, list(ledger.damaged)) == (len(places), [paired_dataset.manifest.keys[row]])


@pytest.mark.parametrize("limit", [0, 1, 6])
def test_one_more_than_the_limit_is_refused_with_count_keys_and_what_to_do(
    plan: Plan, paired_dataset: Dataset, limit: int
) -> None:
    ledger, step = Ledger(plan, paired_dataset, limit), plan.step(0)
    if limit:
        settle(ledger, plan, paired_dataset, 0, dict.fromkeys(range(limit), 0))
    with pytest.raises(InputError) as caught:
        settle(ledger, plan, paired_dataset, 0, {limit: 0})
    keys = list(paired_dataset.manifest.keys[step.rows[: limit + 1]])
    shown = ", ".join(keys[:5]) + (f" and {len(keys) - 5} more" if len(keys) > 5 else "")
    message, root = str(caught.value), paired_dataset.root
    assert message == (
        f"data.max_damaged_samples: {limit}: with step 1 the run has met {limit + 1} damaged samples ({shown}); "
        f"`ltx-shards doctor {root}` says whether the shards are damaged or the manifest is of other ones: put them "
        f"back from a copy and start again, or run `ltx-shards doctor {root} --repair` and train what is left in "
        "another output_dir, or raise the limit"
    )


def test_a_limit_lowered_below_what_is_known_stops_at_the_next_new_one(
    plan: Plan, paired_dataset: Dataset
) -> None:
    step, keys = plan.step(0), paired_dataset.manifest.keys
    known = list(keys[step.rows[:3]])
    ledger = Ledger(plan, paired_dataset, limit=1, total=8, damaged=known)
    settle(ledger, plan, paired_dataset, 0, {0: 0})
    assert ledger.total == 9
    with pytest.raises(InputError, match="has met 4 damaged samples"):
        settle(ledger, plan, paired_dataset, 0, {4: 0})


def test_a_replacement_that_is_no_substitute_is_a_fault(plan: Plan, paired_dataset: Dataset) -> None:
    step, rows = plan.step(0), plan.step(0).rows.copy()
    order = substitutes(paired_dataset.manifest, plan.tokens, SEED, int(step.epochs[0]), int(rows[0]))
    rows[0] = next(row for row in range(30) if row != rows[0] and row not in order)
    with pytest.raises(RuntimeError, match="which it may not replace"):
        Ledger(plan, paired_dataset, limit=9).settle(step, rows, {})


def test_what_a_rank_read_is_told_once(
    plan: Plan, paired_dataset: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    ledger = Ledger(plan, paired_dataset, limit=9)
    error = DamagedSample("shards/000001.tar", "clip", "xxh3_64 checksum", "aa", "bb")
    for _ in range(3):
        ledger.tell(1, {5: error})
    printed = capsys.readouterr()
    assert (
        printed.err
        == "damaged, rank 1: shards/000001.tar: sample 'clip': xxh3_64 checksum: expected aa, found bb\n"
    )
    assert not printed.out


def test_a_resumed_run_goes_on_with_what_was_logged_up_to_its_step(
    plan: Plan, paired_dataset: Dataset, tmp_path: Path
) -> None:
    def line(step: int, key: str, *also: str) -> str:
        return json.dumps(asdict(Replaced(step, 0, 1, key, "s", None, 2, "other", also))) + "\n"

    folder = RunFolder(tmp_path)
    folder.replaced.parent.mkdir()
    folder.replaced.write_text(
        line(1, "a") + line(2, "b", "a", "c") + line(2, "a") + line(3, "d") + '{"step": 3'
    )
    ledgers = at_once(lambda g: open_ledger(plan, paired_dataset, 9, folder, 2, g), in_memory(3))
    for ledger in ledgers:
        assert isinstance(ledger, Ledger)
        assert (ledger.total, list(ledger.damaged)) == (3, ["a", "b", "c"])


def test_a_new_run_knows_of_no_damage(plan: Plan, paired_dataset: Dataset, tmp_path: Path) -> None:
    (ledger,) = at_once(
        lambda g: open_ledger(plan, paired_dataset, 9, RunFolder(tmp_path), 0, g), in_memory(1)
    )
    assert isinstance(ledger, Ledger)
    assert (ledger.total, list(ledger.damaged)) == (0, [])
