"""Steps that are not finite: all ranks leave their update out, the run goes on, counts them, and knows when to stop."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_trainer.checkpoints.checkpoint import open_checkpoint
from dist_trainer.rundir import RunFolder
from dist_trainer.skipped import LOSS, NORM, Skipped, Skips, open_skips, updates
from shards.dataset.opened import Dataset, open_dataset
from shards.errors import InputError
from shards.plan import Batching, Plan, Step
from tests.support.audit import assert_same_run
from tests.support.bench import Bench, assert_refused, only_row
from tests.support.checkpoints import SHAPES, owned, state, write
from tests.support.damage import edit_tensors
from tests.support.forked import Ended, launch, train
from tests.support.gatherings import at_once, in_memory
from tests.support.runs import lines, tiny_config, trained, write_config

pytestmark = pytest.mark.timeout(600)

STEPS, SAMPLES, SEED = 9, 7, 42
ROWS = np.array([4, 0, 2])


def settle(skips: Skips, index: int, losses: list[float], norm: float) -> Skipped | None:
    return skips.settle(Step(index, ROWS, np.zeros(3, dtype=np.int64)), ROWS, np.array(losses), norm)


def counted(dataset: Dataset, limit: int, checkpoints: Path = Path("none")) -> Skips:
    return Skips(dataset, limit, checkpoints)


def test_a_finite_step_is_not_skipped(paired_dataset: Dataset) -> None:
    skips = counted(paired_dataset, limit=0)
    assert settle(skips, 0, [0.1, 0.2, 0.3], 1.0) is None
    skips.check()
    assert skips.total == 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_its_samples(paired_dataset: Dataset, value: float) -> None:
    manifest = paired_dataset.manifest
    found = settle(counted(paired_dataset, limit=1), 6, [0.1, value, value], math.inf)
    assert found == Skipped(7, LOSS, manifest.ids[ROWS[1:]].tolist(), manifest.keys[ROWS[1:]].tolist())


def test_a_norm_alone_names_all_samples_of_the_step(paired_dataset: Dataset) -> None:
    manifest = paired_dataset.manifest
    found = settle(counted(paired_dataset, limit=1), 6, [0.1, 0.2, 0.3], math.inf)
    assert found == Skipped(7, NORM, manifest.ids[ROWS].tolist(), manifest.keys[ROWS].tolist())


def test_only_steps_one_after_the_other_are_too_many(paired_dataset: Dataset) -> None:
    skips = counted(paired_dataset, limit=2)
    for index, norm in enumerate([math.inf, math.inf, 1.0, math.inf, math.inf]):
        settle(skips, index, [0.1, 0.2, 0.3], norm)
        skips.check()
    assert skips.total == 4
    settle(skips, 5, [0.1, math.nan, 0.3], math.nan)
    key, id = paired_dataset.manifest.keys[0], paired_dataset.manifest.ids[0]
    with pytest.raises(InputError) as caught:
        skips.check()
    assert str(caught.value).startswith(
        f"health.max_skipped_steps: 2: all steps from 4 to 6 were skipped: the loss of samples {key} (id {id}) was not "
    )
    assert f"ltx-shards doctor {paired_dataset.root}" in str(caught.value)


def test_a_run_that_is_stopped_says_which_steps_are_saved(paired_dataset: Dataset, tmp_path: Path) -> None:
    skips = counted(paired_dataset, 0, tmp_path)
    settle(skips, 8, [0.1, 0.2, 0.3], math.inf)
    with pytest.raises(InputError, match=r"begins at step 1, as there is no checkpoint yet"):
        skips.check()
    for step in (4, 8):
        write(tmp_path, step, SHAPES, owned(state(SHAPES), 1))
    with pytest.raises(InputError, match=r"goes on from the last checkpoint, that of step 8$"):
        skips.check()


def test_a_norm_that_stops_the_run_blames_no_sample(paired_dataset: Dataset) -> None:
    skips = counted(paired_dataset, limit=0)
    settle(skips, 0, [0.1, 0.2, 0.3], math.inf)
    with pytest.raises(
        InputError, match=r"step 1 was skipped: the gradient norm, but no sample's loss, was not"
    ):
        skips.check()


@pytest.mark.parametrize(
    ("start", "total", "latest"), [(9, 4, [8, 9]), (8, 3, [8]), (10, 4, []), (7, 2, []), (0, 0, [])]
)
def test_every_rank_of_a_resumed_run_knows_what_was_skipped_before_its_checkpoint(
    tmp_path: Path, paired_dataset: Dataset, start: int, total: int, latest: list[int]
) -> None:
    folder = RunFolder(tmp_path)
    folder.skipped.parent.mkdir(parents=True)
    known = [Skipped(step, LOSS, [step], [f"clip_{step}"]) for step in (2, 5, 8, 9)]
    folder.skipped.write_text("".join(json.dumps(asdict(skipped)) + "\n" for skipped in known))
    for skips in at_once(lambda g: open_skips(paired_dataset, 5, folder, start, g), in_memory(3)):
        assert isinstance(skips, Skips)
        assert skips.total == total
        assert skips.latest == [skipped for skipped in known if skipped.step in latest]
    assert at_once(lambda g: updates(folder, start, g), in_memory(3)) == [start - total] * 3


@dataclass(frozen=True)
class Spoiled:
    """A dataset with two samples whose loss is not finite, the plan over it, and a folder for runs."""

    dataset: Dataset
    rows: tuple[int, int]
    plan: Plan
    model: Path
    root: Path

    def config(self, name: str, steps: int = STEPS, limit: int | None = None) -> Path:
        described = tiny_config(
            self.model,
            Path(self.dataset.root),
            self.root / name,
            optimization={"steps": steps, "learning_rate": 1e-3},
            checkpoints={"interval": 1, "keep_last_n": -1},
            health={"max_skipped_steps": self.longest if limit is None else limit},
        )
        return write_config(self.root / f"{name}.yaml", described)

    def found(self, step: int) -> list[int]:
        """The spoiled rows of a step, counted from 1, in its order."""
        return [row for row in self.plan.step(step - 1).rows.tolist() if row in self.rows]

    @property
    def skipped(self) -> list[int]:
        """Which steps have one."""
        return [step for step in range(1, STEPS + 1) if self.found(step)]

    @property
    def longest(self) -> int:
        """How many of them come one after the other."""
        flags = [step in self.skipped for step in range(1, STEPS + 1)]
        return max(len(list(group)) for flag, group in itertools.groupby(flags) if flag)


@pytest.fixture(scope="module")
def spoiled(model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Spoiled:
    """A NaN in a sample that rank 1 of 2 alone trains, in the first step; and latents whose squares overflow.

    The second is one that comes to lie in a step next to one of the first, not at the end.
    """
    root = tmp_path_factory.mktemp("skipped")
    copy = Bench(root, model_folder, paired_dataset).copy_of_dataset()
    first = only_row(paired_dataset, 0, 1, 2)
    manifest = paired_dataset.manifest
    plan = Plan(manifest.ids, manifest.target_tokens(), Batching(SAMPLES, None), SEED)
    made = (
        Spoiled(open_dataset(copy), (first, row), plan, model_folder, root)
        for row in plan.step(2).rows.tolist()
    )
    spoiled = next(it for it in made if it.longest > 1 and it.skipped[-1] < STEPS and 2 not in it.skipped)
    edit_tensors(copy, spoiled.rows[0], _with_nan)
    edit_tensors(copy, spoiled.rows[1], lambda all: all | {"latents": torch.full_like(all["latents"], 1e19)})
    return Spoiled(open_dataset(copy), spoiled.rows, plan, model_folder, root)


def _with_nan(all: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    latents = all["latents"].clone()
    latents.view(-1)[0] = math.nan
    return all | {"latents": latents}


@pytest.fixture(scope="module")
def whole(spoiled: Spoiled) -> Ended:
    return train(2, spoiled.config("whole"), spoiled.root / "logs_whole")


@pytest.mark.usefixtures("whole")
def test_the_steps_of_the_spoiled_samples_are_skipped_and_counted(spoiled: Spoiled) -> None:
    run, skipped = spoiled.root / "whole", spoiled.skipped
    metrics = lines(run / "metrics.jsonl")
    flags = [float(step in skipped) for step in range(1, STEPS + 1)]
    assert [record["train/skipped"] for record in metrics] == flags
    assert [record["train/skipped_total"] for record in metrics] == np.cumsum(flags).tolist()
    for name in ("train/loss", "train/grad_norm"):
        assert [record["step"] for record in metrics if record[name] is None] == skipped
    events = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("train/skipped")] == flags
    assert [event.value for event in events.Scalars("train/skipped_total")] == np.cumsum(flags).tolist()


@pytest.mark.usefixtures("whole")
def test_a_line_names_the_samples_and_the_log_of_trained_ones_is_marked(spoiled: Spoiled) -> None:
    run, manifest = spoiled.root / "whole", spoiled.dataset.manifest
    assert lines(run / "logs" / "skipped.jsonl") == [
        {
            "step": step,
            "cause": "loss",
            "ids": manifest.ids[spoiled.found(step)].tolist(),
            "keys": manifest.keys[spoiled.found(step)].tolist(),
        }
        for step in spoiled.skipped
    ]
    records = trained(run)
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    assert [record["step"] for record in records if record.get("skipped")] == spoiled.skipped
    for record in records:
        assert record["ids"] == manifest.ids[spoiled.plan.step(record["step"] - 1).rows].tolist()


def test_rank_0_says_which_steps_were_skipped_and_why(spoiled: Spoiled, whole: Ended) -> None:
    said = [line for line in whole.stdout[0].splitlines() if ": skipped, as " in line]
    assert len(said) == len(spoiled.skipped)
    key = spoiled.dataset.manifest.keys[spoiled.rows[0]]
    assert said[0].startswith(f"step 1: skipped, as the loss of {key!r} is not finite")
    assert "skipped" not in whole.stdout[1]


@pytest.mark.usefixtures("whole")
def test_nothing_of_a_skipped_step_is_in_a_checkpoint(spoiled: Spoiled) -> None:
    folder, moved = spoiled.root / "whole" / "checkpoints", []
    for step in range(2, STEPS + 1):
        before, after = open_checkpoint(folder, step - 1), open_checkpoint(folder, step)
        for name, shape in after.shapes.items():
            pairs = [checkpoint.read(name, 0, math.prod(shape)) for checkpoint in (before, after)]
            assert all(value.isfinite().all() for value in pairs[1].values())
            if any(not torch.equal(value, pairs[1][kind]) for kind, value in pairs[0].items()):
                moved.append(step)
    assert sorted(set(moved)) == [step for step in range(2, STEPS + 1) if step not in spoiled.skipped]


@pytest.mark.usefixtures("whole")
def test_a_run_stopped_at_skipped_steps_goes_on_as_if_it_had_not_been(spoiled: Spoiled) -> None:
    """The first time before any update was made, the second time amid skipped steps."""
    amid = next(step for step in spoiled.skipped if step + 1 in spoiled.skipped)
    for steps in (1, amid, STEPS):
        ended = train(2, spoiled.config("stopped", steps), spoiled.root / f"logs_until_{steps}")
    assert f"resuming after step {amid}" in ended.stdout[0]
    assert_same_run(spoiled.root / "stopped", spoiled.root / "whole")
    figures = [
        [(record["train/skipped"], record["train/skipped_total"]) for record in lines(run / "metrics.jsonl")]
        for run in (spoiled.root / "stopped", spoiled.root / "whole")
    ]
    assert figures[0] == figures[1]


def test_too_many_one_after_the_other_stop_all_ranks_however_often_it_is_tried(spoiled: Spoiled) -> None:
    """A launch that goes on after some of them has not forgotten those, nor their samples."""
    limit, keys = spoiled.longest - 1, spoiled.dataset.manifest.keys
    last = next(
        step
        for step in range(1, STEPS + 1)
        if all(before in spoiled.skipped for before in range(step - limit, step + 1))
    )
    config = spoiled.config("limited", limit=limit)
    for size in (2, 1):
        ended = launch(size, config, logs=spoiled.root / f"logs_limited_{size}")
        assert ended.codes == [2] * size, str(ended)
        assert_refused(
            ended,
            f"health.max_skipped_steps: {limit}: all steps from {last - limit} to {last} were skipped",
            *(keys[row] for step in range(last - limit, last + 1) for row in spoiled.found(step)),
            "ltx-shards doctor",
        )
    assert f"resuming after step {last - 1}" in ended.stdout[0]
    assert not (spoiled.root / "limited" / "checkpoints" / f"step_{last:06d}").exists()
