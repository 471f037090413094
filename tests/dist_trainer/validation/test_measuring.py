"""Runs with held-out loss and a running mean on: on any number of ranks, stopped and started again."""

from __future__ import annotations

import shutil
import signal
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from dist_trainer.begun import Begun
from dist_trainer.config import RunConfig, load
from dist_trainer.feed.data import open_parts
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import COME_BACK_CODE
from dist_trainer.validation.heldout import Heldout
from dist_trainer.validation.measuring import Measuring
from dist_trainer.validation.rounds import SIGMAS
from shards.dataset.opened import Dataset
from tests.support.audit import assert_same_run, master_weights
from tests.support.forked import Kill, launch, several, train
from tests.support.runs import lines, lora_blocks, tiny_config, trained, write_config

STEPS, SAVED = 6, 4
SIZES = (1, 2, 4)
NAMED = {
    f"{kind}/{name}"
    for kind in ("heldout", "heldout_ema")
    for name in (
        "loss",
        *(f"loss_sigma_{sigma}" for sigma in SIGMAS),
        *(f"reference_{reference}" for reference in ("true", "shuffled", "absent")),
    )
}

pytestmark = pytest.mark.timeout(600)


def measured(run: Path) -> list[dict[str, Any]]:
    """What was measured, step by step; no times."""
    found = [line for line in lines(RunFolder(run).figures) if "heldout/loss" in line]
    return [{key: value for key, value in line.items() if not key.startswith("time/")} for line in found]


@dataclass(frozen=True)
class Runs:
    root: Path
    printed: dict[str, str]


@pytest.fixture(scope="module")
def runs(model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """An IC-LoRA on 1, 2 and 4 processes; that on 2 goes on from its first checkpoint, once on 2 and once on 1; another
    is told to stop, and comes back.
    """
    root = tmp_path_factory.mktemp("measuring")

    def config(name: str) -> Path:
        blocks: dict[str, Any] = {
            **lora_blocks(reference=True),
            "optimization": {"steps": STEPS, "learning_rate": 0.05, "ema_decay": 0.5},
            "checkpoints": {"interval": SAVED, "keep_last_n": 0},
            "batching": {"samples_per_step": 5},
        }
        blocks["validation"] = {"prompts": [], "reference_videos": [], "interval": None}
        blocks["validation"] |= {"holdout": 0.15, "holdout_interval": 2}
        return write_config(
            root / f"{name}.yaml", tiny_config(model_folder, paired_dataset.root, root / name, **blocks)
        )

    printed = {}
    for size in SIZES:
        ended = several(size, config(f"whole_{size}"), logs=root / f"logs_{size}")
        printed[f"whole_{size}"] = ended.stdout[0]
    for size in (1, 2):
        name = f"resumed_{size}"
        shutil.copytree(root / "whole_2", root / name)
        shutil.rmtree(root / name / "checkpoints" / f"step_{STEPS:06d}")
        printed[name] = several(size, config(name), logs=root / f"logs_resumed_{size}").stdout[0]
    # Asked to stop in the second step, after which it would have measured, or soon after.
    kill = Kill(0, str(root / "logs_stopped" / "0.out"), 1, signal.SIGUSR1, "step 1/6")
    ended = launch(1, config("stopped"), logs=root / "logs_stopped", kill=kill, timeout_s=300.0)
    assert ended.codes == [COME_BACK_CODE], str(ended)
    printed["stopped"] = train(1, config("stopped"), logs=root / "logs_back", timeout_s=300.0).stdout[0]
    return Runs(root, printed)


def test_held_out_samples_are_measured_as_asked_and_never_trained(runs: Runs) -> None:
    training, held = open_parts(load(runs.root / "whole_2.yaml"))
    assert held is not None
    seen = {id for record in trained(runs.root / "whole_2") for id in record["ids"]}
    assert seen == set(training.manifest.ids.tolist())
    assert not seen & set(held.manifest.ids.tolist())
    found = measured(runs.root / "whole_2")
    assert [line.pop("step") for line in found] == [0, 2, 4, 6]
    assert all(set(line) == NAMED for line in found)
    [told] = [line for line in runs.printed["whole_2"].splitlines() if line.startswith("held out: ")]
    assert f"{len(held.manifest)} samples, never trained; every 2 steps their loss is measured" in told
    assert "x 4 noise levels x 3 kinds of reference x 2 (weights and their running mean): " in told


@pytest.mark.parametrize("size", [size for size in SIZES if size != 2])
def test_any_number_of_ranks_measures_the_same(runs: Runs, size: int) -> None:
    for ours, theirs in zip(
        measured(runs.root / f"whole_{size}"), measured(runs.root / "whole_2"), strict=True
    ):
        # What was measured before the first step is of the same weights; later ones have the training's own rounding.
        assert ours == pytest.approx(theirs, rel=1e-6 if ours["step"] == 0 else 1e-4)


@pytest.mark.parametrize("size", [size for size in SIZES if size != 2])
def test_losses_by_noise_level_and_length_are_of_the_samples_of_all_ranks(runs: Runs, size: int) -> None:
    def bins(name: str) -> list[dict[str, float]]:
        kinds = ("train/loss_sigma_", "train/loss_length_")
        records = lines(runs.root / name / "metrics.jsonl")
        return [{key: value for key, value in one.items() if key.startswith(kinds)} for one in records]

    ours, theirs = bins(f"whole_{size}"), bins("whole_2")
    assert max(len(one) for one in ours) >= 4
    assert ours == [pytest.approx(one, rel=1e-4) for one in theirs]


def test_the_figures_are_curves_that_go_on_over_a_restart(runs: Runs) -> None:
    for name in ("whole_2", "resumed_2"):
        events = EventAccumulator(
            str(runs.root / name / "tensorboard"), size_guidance={"scalars": 0}
        ).Reload()
        expected = [(line["step"], line["heldout/reference_shuffled"]) for line in measured(runs.root / name)]
        points = [(event.step, event.value) for event in events.Scalars("heldout/reference_shuffled")]
        assert points == [(step, pytest.approx(value)) for step, value in expected]
        assert {"time/heldout_s", "time/save_s"} <= set(events.Tags()["scalars"])


def test_a_stopped_run_goes_on_to_the_bit_with_all_of_it_on(runs: Runs) -> None:
    """Weights, optimizer, running mean and every figure that is no time."""
    resumed, whole = runs.root / "resumed_2", runs.root / "whole_2"
    assert_same_run(resumed, whole)
    assert any(name.startswith("ema:") for name in master_weights(whole))
    assert measured(resumed) == measured(whole)
    timed = ("time/", "speed/", "memory/", "balance/measured")
    ours, theirs = (
        [{k: v for k, v in line.items() if not k.startswith(timed)} for line in lines(run / "metrics.jsonl")]
        for run in (resumed, whole)
    )
    assert ours == theirs
    assert any(name.startswith("train/loss_sigma_") for line in ours for name in line)


def test_a_run_that_is_told_to_stop_measures_what_it_owes_when_it_is_back(runs: Runs) -> None:
    assert "resuming after step " in runs.printed["stopped"]
    assert_same_run(runs.root / "stopped", runs.root / "whole_1")
    assert measured(runs.root / "stopped") == measured(runs.root / "whole_1")


def test_another_number_of_ranks_goes_on_with_the_same_mean(runs: Runs) -> None:
    ours, theirs = (measured(runs.root / name) for name in ("resumed_1", "whole_2"))
    assert ours[-1] == pytest.approx(theirs[-1], rel=1e-4)
    assert ours[-1]["heldout_ema/loss"] != pytest.approx(ours[-1]["heldout/loss"], rel=1e-4)


def test_what_was_measured_is_not_measured_again(runs: Runs) -> None:
    assert f"resuming after step {SAVED}" in runs.printed["resumed_2"]
    said = [line for line in runs.printed["resumed_2"].splitlines() if ": held-out loss" in line]
    assert [line.partition(":")[0] for line in said] == [f"step {STEPS}"]


def test_the_peak_of_memory_begins_anew_after_a_measurement_and_no_other_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    forgotten: list[bool] = []
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: True)
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda: forgotten.append(True))
    blocks = {"data": {"preprocessed_data_root": "d"}, "lora": {}}
    config = RunConfig.model_validate({**blocks, "validation": {"holdout": 0.1, "holdout_interval": 3}})
    run = SimpleNamespace(config=config, engine=None, ema=None, board=None)
    heldout = SimpleNamespace(figures=lambda *_: {"heldout/loss": 1.0})
    measuring = Measuring(cast("Begun", run), cast("Heldout", heldout), None)
    assert [(measuring.at(step), len(forgotten))[1] for step in range(1, 7)] == [0, 0, 1, 1, 1, 2]
