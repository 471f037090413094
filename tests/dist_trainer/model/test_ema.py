"""The running mean of the weights, in real DeepSpeed processes: at each stage, in each precision, with offload."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from dist_trainer.build import build_data, open_reader
from dist_trainer.checkpoints.checkpoint import Checkpoint, open_checkpoint
from dist_trainer.config import load
from dist_trainer.feed.data import open_parts, run_state
from dist_trainer.feed.holdout import chosen
from dist_trainer.model import ltx
from dist_trainer.model.engine import Engine
from dist_trainer.validation.heldout import Heldout
from dist_trainer.world import World
from shards.dataset.opened import Dataset
from tests.support.forked import several
from tests.support.runs import lines, losses, tiny_config, write_config

STEPS, EVERY, DECAY = 3, 2, 0.75
BF16 = {"acceleration": {"mixed_precision_mode": "bf16"}}
WAYS: dict[str, dict[str, Any]] = {
    **{f"fp32_{stage}": {"deepspeed": {"stage": stage}} for stage in range(4)},
    **{f"bf16_{stage}": {**BF16, "deepspeed": {"stage": stage}} for stage in (0, 2, 3)},
    "offload_optimizer": {"deepspeed": {"stage": 3, "offload_optimizer": "cpu"}},
    "offload_optimizer_2": {**BF16, "deepspeed": {"stage": 2, "offload_optimizer": "cpu"}},
    "offload_param": {**BF16, "deepspeed": {"stage": 3, "offload_param": "cpu", "offload_optimizer": "cpu"}},
    "persistent": {**BF16, "deepspeed": {"stage": 3, "config": {}}},
}
PLAIN = ("fp32_0", "fp32_2", "fp32_3", "bf16_3", "persistent")

pytestmark = pytest.mark.timeout(600)


@dataclass(frozen=True)
class Runs:
    root: Path

    def checkpoint(self, name: str, step: int) -> Checkpoint:
        return open_checkpoint(self.root / name / "checkpoints", step)

    def whole(self, name: str, step: int, kind: str) -> dict[str, torch.Tensor]:
        checkpoint = self.checkpoint(name, step)
        return {
            key: checkpoint.read(key, 0, math.prod(shape), (kind,))[kind]
            for key, shape in checkpoint.shapes.items()
        }

    def figures(self, name: str) -> list[dict[str, Any]]:
        return [line for line in lines(self.root / name / "logs" / "figures.jsonl") if "heldout/loss" in line]


@pytest.fixture(scope="module")
def runs(model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    """Every way on 2 processes, measured and shown with its mean now and then; some without mean or measurement.

    There are steps between two looks: DeepSpeed keeps weights at hand that it has learned to expect again.
    """
    root, configs = tmp_path_factory.mktemp("ema"), []
    held = {"holdout": 0.2, "holdout_samples": 2, "interval": None}
    for name, blocks in WAYS.items():
        for kind in ("", "_plain") if name in PLAIN else ("",):
            base: dict[str, Any] = {
                "optimization": {"steps": STEPS, "learning_rate": 0.01, "ema_decay": None if kind else DECAY},
                "checkpoints": {"interval": 1, "keep_last_n": 0},
                "validation": {
                    **held,
                    "holdout_interval": 100 if kind else EVERY,
                    "skip_initial_validation": bool(kind),
                },
                "batching": {"samples_per_step": 5},
                "tensorboard": {"enabled": False},
                **blocks,
            }
            described = tiny_config(model_folder, paired_dataset.root, root / f"{name}{kind}", **base)
            configs.append(write_config(root / f"{name}{kind}.yaml", described))
    several(2, *configs, logs=root / "logs")
    return Runs(root)


@pytest.mark.parametrize("name", WAYS)
def test_each_step_moves_the_mean_towards_the_weights(runs: Runs, name: str) -> None:
    for step in range(2, STEPS + 1):
        before, now = (runs.whole(name, number, "ema") for number in (step - 1, step))
        weights = runs.whole(name, step, "master")
        for key, mean in now.items():
            expected = torch.lerp(before[key], weights[key], 1 - DECAY)
            torch.testing.assert_close(mean, expected, rtol=1e-6, atol=1e-9, msg=key)
            assert not torch.equal(mean, weights[key]), key


class Plain:
    """An engine that runs a whole model in this process."""

    def __init__(self, weights: dict[str, torch.Tensor], folder: Path) -> None:
        from diffusers import LTXVideoTransformer3DModel

        self._model = LTXVideoTransformer3DModel.from_pretrained(folder)
        for name, parameter in self._model.named_parameters():
            parameter.data = weights[name].reshape(parameter.shape)
        ltx.install(self._model)

    def evaluating(self) -> Any:
        return torch.no_grad()

    def forward(self, *inputs: Any) -> torch.Tensor:
        return cast("torch.Tensor", self._model(*inputs))


@pytest.mark.usefixtures("alone")
def test_what_is_measured_is_the_loss_of_this_very_steps_weights_and_mean(runs: Runs) -> None:
    """On two ranks at stage 3, as one process has it of the checkpoint of that step."""
    config, world = load(runs.root / "fp32_3.yaml"), World(0, 1, 0)
    training, held = open_parts(config)
    assert held is not None
    data = build_data(config, training, run_state(config, training, world, None))
    some = chosen(held, config.seed, config.validation.holdout_samples)
    last = runs.figures("fp32_3")[-1]
    assert last["step"] == STEPS
    with open_reader(config, some) as reader:
        heldout = Heldout(some, reader, data.feeding, world)
        for kind, prefix in (("master", "heldout"), ("ema", "heldout_ema")):
            engine = Plain(runs.whole("fp32_3", STEPS, kind), runs_model(runs))
            found = heldout.figures(cast("Engine", engine), torch.float32, prefix, lambda: True)
            expected = {name: value for name, value in last.items() if name.startswith(f"{prefix}/")}
            assert f"{prefix}/loss" in expected
            assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", WAYS)
def test_the_mean_begins_as_the_weights(runs: Runs, name: str) -> None:
    """Not rounded in bf16 either. So the first step moves it a quarter of the way that it moves the weights."""
    from diffusers import LTXVideoTransformer3DModel

    start = dict(LTXVideoTransformer3DModel.from_pretrained(runs_model(runs)).named_parameters())
    weights, means = runs.whole(name, 1, "master"), runs.whole(name, 1, "ema")
    for key, mean in means.items():
        first = start[key].detach().flatten()
        torch.testing.assert_close(mean, torch.lerp(first, weights[key], 1 - DECAY), rtol=1e-6, atol=1e-8)


def runs_model(runs: Runs) -> Path:
    return Path(load(runs.root / "fp32_0.yaml").model.model_source) / "transformer"


@pytest.mark.parametrize("name", PLAIN)
def test_training_does_not_depend_on_what_looks_at_the_model(runs: Runs, name: str) -> None:
    """To the bit: the weights are as they were after the mean was shown and the loss measured."""
    assert losses(runs.root / name) == losses(runs.root / f"{name}_plain")
    ours, theirs = (runs.whole(one, STEPS, "master") for one in (name, f"{name}_plain"))
    assert all(torch.equal(value, theirs[key]) for key, value in ours.items())


@pytest.mark.parametrize("name", WAYS)
def test_the_loss_of_the_mean_is_that_of_the_weights_at_first_and_another_later(
    runs: Runs, name: str
) -> None:
    first, *later = runs.figures(name)
    assert [line["step"] for line in (first, *later)] == [0, EVERY, STEPS]
    assert first["heldout_ema/loss"] == first["heldout/loss"]
    assert all(line["heldout_ema/loss"] != line["heldout/loss"] for line in later)


@pytest.mark.parametrize("name", [name for name in WAYS if name.startswith("fp32")])
def test_every_stage_measures_the_same(runs: Runs, name: str) -> None:
    for ours, theirs in zip(runs.figures(name), runs.figures("fp32_3"), strict=True):
        for figure in ("heldout/loss", "heldout_ema/loss", "heldout/loss_sigma_0.625"):
            assert ours[figure] == pytest.approx(theirs[figure], rel=1e-5), figure


def test_without_a_mean_a_checkpoint_holds_none(runs: Runs) -> None:
    assert "ema" in runs.checkpoint("fp32_2", STEPS).kinds
    assert "ema" not in runs.checkpoint("fp32_2_plain", STEPS).kinds
