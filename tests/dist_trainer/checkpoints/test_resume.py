"""Promise 4: kill everything at any moment, start again with the same command, and nothing shows it."""

from __future__ import annotations

import random
import shutil
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.dataset.opened import Dataset
from shards.plan import Batching, Plan
from tests.support.audit import assert_same_run
from tests.support.forked import several
from tests.support.runs import lines, lora_blocks, losses, tiny_config, trained, write_config
from tests.support.struck import Strike, strike

STEPS, INTERVAL, SAMPLES = 8, 3, 7

MODES: dict[str, dict[str, Any]] = {
    "full": {"optimization": {"learning_rate": 1e-3}},
    "ic_lora": {**lora_blocks(reference=True), "optimization": {"learning_rate": 1e-2}},
}


class Scenario:
    """Uninterrupted and killed runs of both modes on 2 processes, and the killed ones resumed on 2, 1 and 4."""

    def __init__(self, root: Path, model: Path, data: Path) -> None:
        self.root, self.model, self.data = root, model, data
        several(2, *[self.config(mode, "whole") for mode in MODES], logs=root / "logs_whole")
        self.killed_at = {mode: self._kill(mode) for mode in MODES}
        for size in (2, 1, 4):
            for mode in MODES:
                shutil.copytree(self.run(mode, "killed"), self.run(mode, f"resumed_{size}"))
            several(
                size, *[self.config(mode, f"resumed_{size}") for mode in MODES], logs=root / f"logs_{size}"
            )

    def run(self, mode: str, name: str) -> Path:
        return self.root / f"{mode}_{name}"

    def config(self, mode: str, name: str) -> Path:
        blocks = {
            **MODES[mode],
            "optimization": {"steps": STEPS, **MODES[mode]["optimization"]},
            "checkpoints": {"interval": INTERVAL, "keep_last_n": 2},
            "batching": {"samples_per_step": SAMPLES},
        }
        described = tiny_config(self.model, self.data, self.run(mode, name), **blocks)
        return write_config(self.root / f"{mode}_{name}.yaml", described)

    def _kill(self, mode: str) -> int:
        """Start a run, kill -9 its ranks in a random step after the first checkpoint; returns the steps logged."""
        step = random.randint(INTERVAL + 2, STEPS)
        kills = [Strike(rank, "update", step, "SIGKILL") for rank in range(2)]
        ended = strike(2, self.config(mode, "killed"), kills, self.root / f"logs_kill_{mode}")
        assert ended.codes == [-signal.SIGKILL] * 2, str(ended)
        return (self.run(mode, "killed") / "metrics.jsonl").read_text().count("\n")


@pytest.fixture(scope="module")
def scenario(
    model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Scenario:
    return Scenario(tmp_path_factory.mktemp("resume"), model_folder, paired_dataset.root)


pytestmark = [pytest.mark.timeout(900), pytest.mark.parametrize("mode", MODES)]


def test_the_killed_run_had_not_ended(scenario: Scenario, mode: str) -> None:
    assert INTERVAL < scenario.killed_at[mode] < STEPS


def test_same_number_of_processes_gives_bit_equal_losses(scenario: Scenario, mode: str) -> None:
    assert_same_run(scenario.run(mode, "resumed_2"), scenario.run(mode, "whole"))


@pytest.mark.parametrize("size", [1, 4])
def test_other_numbers_of_processes_give_the_same_losses(scenario: Scenario, mode: str, size: int) -> None:
    whole = losses(scenario.run(mode, "whole"))
    np.testing.assert_allclose(losses(scenario.run(mode, f"resumed_{size}")), whole, rtol=1e-5)


@pytest.mark.parametrize("name", ["resumed_2", "resumed_1", "resumed_4"])
def test_no_sample_is_lost_or_repeated(
    scenario: Scenario, paired_dataset: Dataset, mode: str, name: str
) -> None:
    records = trained(scenario.run(mode, name))
    assert [record["step"] for record in records] == list(range(1, STEPS + 1))
    seen = Counter(
        (epoch, identity)
        for record in records
        for epoch, identity in zip(record["epochs"], record["ids"], strict=True)
    )
    assert set(seen.values()) == {1}
    manifest = paired_dataset.manifest
    plan = Plan(manifest.ids, manifest.tokens(), Batching(SAMPLES, None), seed=42)
    steps = [plan.step(k) for k in range(STEPS)]
    assert set(seen) == {
        (int(e), int(manifest.ids[row]))
        for step in steps
        for e, row in zip(step.epochs, step.rows, strict=True)
    }


def test_each_step_is_logged_once(scenario: Scenario, mode: str) -> None:
    for name in ("resumed_2", "resumed_1", "resumed_4"):
        steps = [record["step"] for record in lines(scenario.run(mode, name) / "metrics.jsonl")]
        assert steps == list(range(1, STEPS + 1))


def test_only_the_last_checkpoints_are_kept(scenario: Scenario, mode: str) -> None:
    folder = scenario.run(mode, "resumed_2") / "checkpoints"
    assert sorted(p.name for p in folder.iterdir()) == ["latest", "step_000006", "step_000008"]
    assert (folder / "latest").read_text() == "step_000008\n"


def test_checkpoints_hold_what_is_trained_and_nothing_else(scenario: Scenario, mode: str) -> None:
    from dist_trainer.checkpoints.checkpoint import newest

    checkpoint = newest(scenario.run(mode, "whole") / "checkpoints")
    assert checkpoint is not None
    adapters = [".lora_A." in name or ".lora_B." in name for name in checkpoint.shapes]
    assert all(adapters) if mode == "ic_lora" else not any(adapters)
    assert set(checkpoint.kinds) == {"master", "exp_avg", "exp_avg_sq"}
