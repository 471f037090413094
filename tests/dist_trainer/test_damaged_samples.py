"""Flipped bits in real runs: the same samples replace the damaged ones on any number of processes, and are counted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_trainer.feed.substitute import substitutes
from shards.dataset.opened import Dataset, open_dataset
from shards.plan import Batching, Plan
from tests.support.bench import Bench, assert_refused
from tests.support.damage import flip
from tests.support.forked import Ended, Kill, launch, train
from tests.support.runs import lines, losses, tiny_config, trained, write_config

pytestmark = pytest.mark.timeout(300)

STEPS, SAMPLES = 9, 7
SIZES = (1, 2, 4)


@dataclass(frozen=True)
class Damage:
    """A dataset with damaged `rows`, the plan over it, and a folder for runs."""

    dataset: Dataset
    rows: tuple[int, ...]
    plan: Plan
    model: Path
    root: Path

    def config(self, name: str, **blocks: Any) -> Path:
        described = tiny_config(
            self.model,
            Path(self.dataset.root),
            self.root / name,
            **{
                "optimization": {"optimizer_type": "sgd", "steps": STEPS},
                "conditioning": {"first_frame_conditioning_p": 0.5},
                "checkpoints": {"interval": 3, "keep_last_n": 2},
                **blocks,
            },
        )
        return write_config(self.root / f"{name}.yaml", described)

    def expected(self) -> list[list[tuple[int, int, list[int]]]]:
        """For each step: position, replacing row and the damaged rows tried before it, of what is replaced."""
        steps = []
        for k in range(STEPS):
            step = self.plan.step(k)
            found = []
            for position in np.flatnonzero(np.isin(step.rows, self.rows)).tolist():
                row, epoch = int(step.rows[position]), int(step.epochs[position])
                order = substitutes(
                    self.dataset.manifest, self.plan.tokens, self.plan.seed, epoch, row
                ).tolist()
                place = next(i for i, other in enumerate(order) if other not in self.rows)
                found.append((position, order[place], order[:place]))
            steps.append(found)
        return steps


@pytest.fixture(scope="module")
def damage(model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Damage:
    """Four damaged samples: one is the first to be tried in the place of another, one comes first in step 4."""
    root = tmp_path_factory.mktemp("damage")
    bench = Bench(root, model_folder, paired_dataset)
    manifest = paired_dataset.manifest
    plan = Plan(manifest.ids, manifest.target_tokens(), Batching(SAMPLES, None), seed=42)
    first, second = plan.step(0).rows[[0, 3]].tolist()
    tried = int(substitutes(manifest, plan.tokens, 42, 0, first)[0])
    late = next(row for row in plan.step(3).rows.tolist() if row != tried)
    rows = {first, second, tried, late}
    copy = bench.copy_of_dataset()
    for row in rows:
        flip(copy, row)
    return Damage(open_dataset(copy), tuple(sorted(rows)), plan, model_folder, root)


@pytest.fixture(scope="module")
def ended(damage: Damage) -> dict[int, Ended]:
    """A run on each number of processes."""
    return {size: train(size, damage.config(f"on_{size}"), damage.root / f"logs_{size}") for size in SIZES}


def curve(run: Path, name: str) -> list[tuple[int, float]]:
    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]


@pytest.mark.usefixtures("ended")
def test_losses_do_not_depend_on_the_number_of_processes(damage: Damage) -> None:
    alone = losses(damage.root / "on_1")
    assert len(alone) == STEPS
    assert np.isfinite(alone).all()
    for size in SIZES[1:]:
        np.testing.assert_allclose(losses(damage.root / f"on_{size}"), alone, rtol=1e-5)


@pytest.mark.usefixtures("ended")
@pytest.mark.parametrize("size", SIZES)
def test_the_log_of_trained_samples_names_what_was_really_trained(damage: Damage, size: int) -> None:
    for record, replaced in zip(trained(damage.root / f"on_{size}"), damage.expected(), strict=True):
        rows = damage.plan.step(record["step"] - 1).rows.copy()
        for position, row, _ in replaced:
            rows[position] = row
        assert record["ids"] == damage.dataset.manifest.ids[rows].tolist()


@pytest.mark.usefixtures("ended")
@pytest.mark.parametrize("size", SIZES)
def test_every_replaced_sample_has_a_line(damage: Damage, size: int) -> None:
    manifest, expected = damage.dataset.manifest, []
    for k, replaced in enumerate(damage.expected()):
        step = damage.plan.step(k)
        for position, row, between in replaced:
            damaged = int(step.rows[position])
            expected.append(
                {
                    "step": k + 1,
                    "epoch": int(step.epochs[position]),
                    "id": int(manifest.ids[damaged]),
                    "key": manifest.keys[damaged],
                    "shard": manifest.shards[manifest.shard[damaged]],
                    "replacement_id": int(manifest.ids[row]),
                    "replacement_key": manifest.keys[row],
                    "also_damaged": list(manifest.keys[between]),
                }
            )
    written = lines(damage.root / f"on_{size}" / "logs" / "replaced.jsonl")
    wrong = [record.pop("wrong") for record in written]
    assert written == expected
    assert any(record["also_damaged"] for record in written), "one of the replacements was damaged too"
    assert all("checksum: expected" in text for text in wrong if text)
    # Rank 0 knows what was wrong with what it has read, which alone is all.
    assert size > 1 or all(wrong)


@pytest.mark.usefixtures("ended")
@pytest.mark.parametrize("size", SIZES)
def test_replaced_samples_are_counted_in_tensorboard_and_metrics(damage: Damage, size: int) -> None:
    run = damage.root / f"on_{size}"
    counts = [len(replaced) for replaced in damage.expected()]
    totals = np.cumsum(counts).tolist()
    assert totals[-1] > len(damage.rows), "some are met again in a later epoch"
    assert [record["data/replaced"] for record in lines(run / "metrics.jsonl")] == counts
    assert [record["data/replaced_total"] for record in lines(run / "metrics.jsonl")] == totals
    assert curve(run, "data/replaced") == list(enumerate(counts, start=1))
    assert curve(run, "data/replaced_total") == list(enumerate(totals, start=1))


@pytest.mark.parametrize("size", SIZES)
def test_the_rank_that_reads_tells_shard_key_and_checksums_once(
    damage: Damage, ended: dict[int, Ended], size: int
) -> None:
    manifest = damage.dataset.manifest
    told = [line for text in ended[size].stderr for line in text.splitlines() if line.startswith("damaged")]
    assert len(set(told)) == len(told)
    for rank, text in enumerate(ended[size].stderr):
        assert all(
            line.startswith(f"damaged, rank {rank}: ") for line in text.splitlines() if "damaged" in line
        )
    for row in damage.rows:
        named = [
            line
            for line in told
            if f"{manifest.shards[manifest.shard[row]]}: sample {manifest.keys[row]!r}" in line
        ]
        assert 1 <= len(named) <= size
        assert all(
            f"xxh3_64 checksum: expected {manifest.checksum[row]:016x}, found " in line for line in named
        )


@pytest.mark.parametrize("size", SIZES)
def test_rank_0_says_what_replaced_what(damage: Damage, ended: dict[int, Ended], size: int) -> None:
    keys = damage.dataset.manifest.keys
    said = [line for line in ended[size].stdout[0].splitlines() if line.endswith(" in its place")]
    assert len(said) == sum(len(replaced) for replaced in damage.expected())
    k, (position, row, _) = next((k, entry) for k, step in enumerate(damage.expected()) for entry in step)
    assert said[0].startswith(f"step {k + 1}: sample {keys[damage.plan.step(k).rows[position]]!r} of shards/")
    assert said[0].endswith(f"; trained {keys[row]!r} in its place")
    assert not any("in its place" in text for text in ended[size].stdout[1:])


@pytest.mark.usefixtures("ended")
def test_a_killed_and_resumed_run_replaces_and_counts_as_the_whole_one(damage: Damage) -> None:
    config, run = damage.config("killed"), damage.root / "killed"
    kill = Kill(0, str(run / "metrics.jsonl"), lines=5)
    killed = launch(2, config, logs=damage.root / "logs_killed", kill=kill)
    assert -9 in killed.codes
    resumed = train(1, config, damage.root / "logs_resumed")
    assert "resuming after step" in resumed.stdout[0]
    whole = damage.root / "on_1"
    np.testing.assert_allclose(losses(run), losses(whole), rtol=1e-5)
    assert trained(run) == trained(whole)
    for name in ("data/replaced", "data/replaced_total"):
        assert [r[name] for r in lines(run / "metrics.jsonl")] == [
            r[name] for r in lines(whole / "metrics.jsonl")
        ]
        assert curve(run, name) == curve(whole, name)
    entries = [
        [{**record, "wrong": None} for record in lines(folder / "logs" / "replaced.jsonl")]
        for folder in (run, whole)
    ]
    assert entries[0] == entries[1]


def met(damage: Damage) -> Iterator[tuple[int, list[str]]]:
    """After each step, its number and the keys of the damaged samples that a run has met."""
    keys: dict[str, None] = {}
    for k, replaced in enumerate(damage.expected()):
        for position, _, between in replaced:
            rows = [int(damage.plan.step(k).rows[position]), *between]
            keys.update(dict.fromkeys(damage.dataset.manifest.keys[rows]))
        yield k + 1, list(keys)


def test_too_many_stop_all_ranks_at_the_same_step_with_one_message(damage: Damage) -> None:
    """A resumed run has not forgotten what it met before: it stops at the same step with the same words."""
    limit = len(damage.rows) - 1
    step, keys = next((step, keys) for step, keys in met(damage) if len(keys) > limit)
    assert step > 3, "after the first checkpoint"
    named = f"with step {step} the run has met {limit + 1} damaged samples ({', '.join(keys)})"
    config = damage.config("limited", data={"max_damaged_samples": limit})
    first = launch(2, config, logs=damage.root / "logs_limited")
    assert "resuming" not in first.stdout[0], str(first)
    again = launch(4, config, logs=damage.root / "logs_limited_again")
    assert "resuming after step 3" in again.stdout[0], str(again)
    for ended, size in ((first, 2), (again, 4)):
        assert_refused(ended, f"data.max_damaged_samples: {limit}: {named}", "ltx-shards doctor", "--repair")
        assert ended.codes == [2] * size
    assert first.errors == again.errors
    assert [record["step"] for record in trained(damage.root / "limited")] == list(range(1, step))


def test_0_tolerates_none(damage: Damage) -> None:
    config = damage.config("none", data={"max_damaged_samples": 0})
    assert_refused(
        launch(1, config, logs=damage.root / "logs_none"), "data.max_damaged_samples: 0: with step 1"
    )
    assert not losses(damage.root / "none"), "the step that met it was not applied"
