"""Every ZeRO stage, precision and offload does the same arithmetic: that of a plain loop in torch."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXVideoTransformer3DModel

from dist_trainer.checkpoints.checkpoint import Checkpoint, open_checkpoint
from dist_trainer.config import load
from dist_trainer.feed.collate import collate, draws
from dist_trainer.feed.conditioning import Recipe
from dist_trainer.feed.flow import Sampling
from dist_trainer.model import ltx
from dist_trainer.model.lora import add_adapter
from dist_trainer.model.loss import sample_sums
from dist_trainer.schedule import lr_at
from shards.dataset.opened import Dataset
from shards.geometry import Patch
from shards.plan import Batching, Plan
from shards.reader import Reader
from tests.support.forked import launch
from tests.support.runs import lines, lora_blocks, losses, tiny_config, write_config

STAGES = (0, 1, 2, 3)
MODES: dict[str, dict[str, Any]] = {"full": {}, "lora": lora_blocks()}
PRECISIONS = {"fp32": None, "bf16": "bf16"}
STEPS, INTERVAL, SAMPLES, SEED = 4, 2, 5, 42
CLIP, SGD_STEPS, TARGETS = 0.1, 3, ("to_k", "to_q", "to_v", "to_out.0")
# One rounding of bf16: 2**-8. A loss is a mean over hundreds of numbers whose roundings mostly cancel; measured 6e-4.
BF16 = 4e-3

ADAM = {"steps": STEPS, "learning_rate": 1e-3, "warmup_steps": 1, "scheduler_type": "linear"}
SGD = {
    "optimizer_type": "sgd",
    "steps": SGD_STEPS,
    "learning_rate": 0.5,
    "warmup_steps": 2,
    "max_grad_norm": CLIP,
}
OTHERS: dict[str, dict[str, Any]] = {
    "offload_optimizer": {"deepspeed": {"stage": 3, "offload_optimizer": "cpu"}},
    "offload_param": {"deepspeed": {"stage": 3, "offload_param": "cpu", "offload_optimizer": "cpu"}},
    "offload_optimizer_1": {"deepspeed": {"stage": 1, "offload_optimizer": "cpu"}},
    "recomputed": {"optimization": {**ADAM, "enable_gradient_checkpointing": True}},
    "recomputed_bf16": {
        "optimization": {**ADAM, "enable_gradient_checkpointing": True},
        "acceleration": {"mixed_precision_mode": "bf16", "compile_with_inductor": False},
    },
}
"""Further ways to run `full`, at stage 3 where nothing else is said."""
LORA_RECOMPUTED = {**lora_blocks(), **OTHERS["recomputed"]}
CHANGED_STAGE = [(3, 1), (1, 3), (0, 2)]

pytestmark = pytest.mark.timeout(600)


def _matrix() -> Iterator[tuple[str, dict[str, Any]]]:
    for mode, blocks in MODES.items():
        for precision, word in PRECISIONS.items():
            for stage in STAGES:
                yield (
                    f"{mode}_{precision}_{stage}",
                    {
                        **blocks,
                        "acceleration": {"mixed_precision_mode": word},
                        "deepspeed": {"stage": stage},
                    },
                )


MATRIX = dict(_matrix())
OFFLOADED = ("offload_optimizer", "offload_param", "offload_optimizer_1")
BF16_MODE = {"acceleration": {"mixed_precision_mode": "bf16"}}
HOST_MEMORY: dict[str, dict[str, Any]] = {
    **{name: OTHERS[name] for name in OFFLOADED},
    "offload_optimizer_2": {"deepspeed": {"stage": 2, "offload_optimizer": "cpu"}},
}
SKIPPING: dict[str, dict[str, Any]] = {
    **{name: MATRIX[name] for name in MATRIX if name.startswith("full")},
    **{name: MATRIX[name] for name in ("lora_fp32_0", "lora_bf16_2", "lora_bf16_3")},
    **HOST_MEMORY,
    **{f"{name}_bf16": {**blocks, **BF16_MODE} for name, blocks in HOST_MEMORY.items()},
    "unclipped": {**HOST_MEMORY["offload_optimizer_2"], "optimization": {**ADAM, "max_grad_norm": 0.0}},
    # Under DeepSpeed's own threshold all parameters of so small a model stay whole on every rank.
    "persistent": {"deepspeed": {"stage": 3, "config": {}}},
}
"""Runs in which steps are skipped."""
RESUMED = [*MATRIX, *OFFLOADED]


@dataclass(frozen=True)
class Runs:
    """All runs on 2 processes in one launch, then in another those that go on after their last checkpoint is lost."""

    root: Path
    model: Path
    dataset: Dataset

    def folder(self, name: str) -> Path:
        return self.root / name

    def config(self, name: str, blocks: dict[str, Any]) -> Path:
        blocks = {
            "optimization": ADAM,
            "checkpoints": {"interval": INTERVAL, "keep_last_n": 0},
            "batching": {"samples_per_step": SAMPLES},
            "tensorboard": {"enabled": False},
            "seed": SEED,
            **blocks,
        }
        described = tiny_config(self.model, self.dataset.root, self.folder(name), **blocks)
        return write_config(self.root / f"{name}.yaml", described)

    def start(self) -> None:
        configs = [self.config(name, blocks) for name, blocks in (MATRIX | OTHERS).items()]
        configs.append(self.config("recomputed_lora", LORA_RECOMPUTED))
        for mode, blocks in MODES.items():
            for stage in STAGES:
                blocks = {**blocks, "optimization": SGD, "deepspeed": {"stage": stage}}
                configs.append(self.config(f"sgd_{mode}_{stage}", blocks))
        self._launch("first", configs)
        configs = [self._resumed(name, f"{name}_resumed", (MATRIX | OTHERS)[name]) for name in RESUMED]
        for before, after in CHANGED_STAGE:
            changed = {**MATRIX[f"full_fp32_{before}"], "deepspeed": {"stage": after}}
            configs.append(self._resumed(f"full_fp32_{before}", f"stage_{before}_to_{after}", changed))
        self._launch("second", configs)

    def checkpoint(self, name: str, step: int) -> Checkpoint:
        return open_checkpoint(self.folder(name) / "checkpoints", step)

    def recorded(self, name: str, figure: str) -> list[float]:
        return [record[figure] for record in lines(self.folder(name) / "metrics.jsonl")]

    @cached_property
    def plain(self) -> dict[str, tuple[list[float], list[float], dict[str, torch.Tensor]]]:
        """Losses, gradient norms and trained weights of a plain loop, for each mode."""
        return {
            mode: _plain_loop(self.model, self.dataset, mode, self.folder(f"sgd_{mode}_3")) for mode in MODES
        }

    def _resumed(self, name: str, new: str, blocks: dict[str, Any]) -> Path:
        shutil.copytree(self.folder(name), self.folder(new))
        shutil.rmtree(self.folder(new) / "checkpoints" / f"step_{STEPS:06d}")
        return self.config(new, blocks)

    def _launch(self, name: str, configs: list[Path]) -> None:
        logs = self.root / f"logs_{name}"
        ended = launch(2, *configs, logs=logs, module="tests.support.several_runs", timeout_s=300.0)
        assert ended.codes == [0, 0], str(ended)


@pytest.fixture(scope="module")
def runs(model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    made = Runs(tmp_path_factory.mktemp("engine"), model_folder, paired_dataset)
    made.start()
    return made


def _plain_loop(
    model_folder: Path, dataset: Dataset, mode: str, run: Path
) -> tuple[list[float], list[float], dict[str, torch.Tensor]]:
    """The run `sgd_<mode>` without DeepSpeed, ranks, micro-steps or an optimizer object."""
    model = LTXVideoTransformer3DModel.from_pretrained(model_folder / "transformer").train()
    ltx.install(model)
    if mode == "lora":
        add_adapter(model, 4, 8, 0.0, TARGETS, SEED)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    recipe = Recipe(dataset.info.scale, Patch(), "none", 0.1, False, Sampling(), SEED)
    manifest, optimization = dataset.manifest, load(run / "config.yaml").optimization
    plan = Plan(manifest.ids, manifest.target_tokens(), Batching(SAMPLES, None), SEED)
    found: list[float] = []
    norms: list[float] = []
    with Reader(dataset) as reader:
        for k in range(SGD_STEPS):
            step = plan.step(k)
            samples = reader.read(step.rows)
            drawn = draws(samples, [int(epoch) for epoch in step.epochs], recipe)
            whole = collate(samples, drawn, recipe, range(SAMPLES), [1.0] * SAMPLES)
            errors = sample_sums(model(*whole.to("cpu", torch.float32).inputs()), whole)
            loss = (errors / whole.elements).mean()
            gradients = torch.autograd.grad(loss, list(trained.values()))
            norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
            shrink = min(1.0, CLIP / (norm + 1e-6))
            with torch.no_grad():
                for parameter, gradient in zip(trained.values(), gradients, strict=True):
                    parameter -= lr_at(k, optimization) * shrink * gradient
            found.append(loss.item())
            norms.append(norm)
    return found, norms, {name: p.detach() for name, p in trained.items()}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES)
def test_losses_norms_and_weights_are_those_of_a_plain_loop(runs: Runs, stage: int, mode: str) -> None:
    name = f"sgd_{mode}_{stage}"
    found, norms, weights = runs.plain[mode]
    np.testing.assert_allclose(losses(runs.folder(name)), found, rtol=1e-5)
    np.testing.assert_allclose(runs.recorded(name, "train/grad_norm"), norms, rtol=1e-5)
    checkpoint = runs.checkpoint(name, SGD_STEPS)
    assert checkpoint.shapes == {key: tuple(weight.shape) for key, weight in weights.items()}
    for key, weight in weights.items():
        ours = checkpoint.read(key, 0, weight.numel())["master"].reshape(weight.shape)
        torch.testing.assert_close(ours, weight, rtol=0, atol=1e-6, msg=key)


@pytest.mark.parametrize("mode", MODES)
def test_the_plain_loop_clips_and_moves_the_weights(runs: Runs, mode: str) -> None:
    """Else the test above would hold for an engine that did neither."""
    _, norms, weights = runs.plain[mode]
    assert min(norms) > CLIP
    start = LTXVideoTransformer3DModel.from_pretrained(runs.model / "transformer")
    if mode == "lora":
        add_adapter(start, 4, 8, 0.0, TARGETS, SEED)
    before = dict(start.named_parameters())
    moved = max(float((weight - before[name]).detach().abs().max()) for name, weight in weights.items())
    assert moved > 1e-3


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", [0, 1, 2])
def test_every_stage_gives_the_losses_of_stage_3(runs: Runs, stage: int, mode: str) -> None:
    reference = losses(runs.folder(f"{mode}_fp32_3"))
    assert len(reference) == STEPS
    np.testing.assert_allclose(losses(runs.folder(f"{mode}_fp32_{stage}")), reference, rtol=1e-5)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES)
def test_bf16_stays_near_float32_but_is_not_it(runs: Runs, stage: int, mode: str) -> None:
    reference, ours = losses(runs.folder(f"{mode}_fp32_3")), losses(runs.folder(f"{mode}_bf16_{stage}"))
    np.testing.assert_allclose(ours, reference, rtol=BF16)
    assert ours != reference


@pytest.mark.parametrize("name", ["offload_optimizer", "offload_param", "offload_optimizer_1", "recomputed"])
def test_offload_and_recomputation_change_no_loss(runs: Runs, name: str) -> None:
    reference = losses(runs.folder("full_fp32_3"))
    np.testing.assert_allclose(losses(runs.folder(name)), reference, rtol=1e-5)


def test_recomputation_changes_no_loss_of_a_lora(runs: Runs) -> None:
    reference = losses(runs.folder("lora_fp32_3"))
    np.testing.assert_allclose(losses(runs.folder("recomputed_lora")), reference, rtol=1e-5)


def test_recomputation_changes_no_loss_in_bf16(runs: Runs) -> None:
    assert losses(runs.folder("recomputed_bf16")) == losses(runs.folder("full_bf16_3"))


@pytest.mark.parametrize("name", RESUMED)
def test_a_resumed_run_goes_on_bit_by_bit(runs: Runs, name: str) -> None:
    assert losses(runs.folder(f"{name}_resumed")) == losses(runs.folder(name))
    whole, resumed = runs.checkpoint(name, STEPS), runs.checkpoint(f"{name}_resumed", STEPS)
    assert whole.kinds == resumed.kinds == ("master", "exp_avg", "exp_avg_sq")
    for key, shape in whole.shapes.items():
        ours, theirs = (checkpoint.read(key, 0, math.prod(shape)) for checkpoint in (whole, resumed))
        for kind in whole.kinds:
            assert torch.equal(ours[kind], theirs[kind]), f"{kind} of {key}"


@pytest.mark.parametrize(("before", "after"), CHANGED_STAGE)
def test_the_stage_may_change_between_launches(runs: Runs, before: int, after: int) -> None:
    reference = losses(runs.folder(f"full_fp32_{before}"))
    np.testing.assert_allclose(losses(runs.folder(f"stage_{before}_to_{after}")), reference, rtol=1e-5)


def test_resumed_runs_really_began_at_the_checkpoint(runs: Runs) -> None:
    printed = (runs.root / "logs_second" / "0.out").read_text()
    assert printed.count(f"resuming after step {INTERVAL}\n") == len(RESUMED) + len(CHANGED_STAGE)
    assert f"step {INTERVAL}/{STEPS}" not in printed


@pytest.mark.parametrize("name", ["full_fp32_0", "lora_bf16_3", "full_fp32_2_resumed", "sgd_full_1"])
def test_the_learning_rate_is_that_of_the_optimizer_step(runs: Runs, name: str) -> None:
    optimization = load(runs.folder(name) / "config.yaml").optimization
    expected = [lr_at(step, optimization) for step in range(optimization.steps)]
    assert runs.recorded(name, "train/learning_rate") == expected
    assert expected[0] < expected[1], "there is a warm-up"


@pytest.mark.parametrize("mode", MODES)
def test_under_stage_3_blocks_come_in_one_piece_and_no_rank_holds_a_whole_parameter(
    runs: Runs, mode: str
) -> None:
    config = runs.config(f"partitions_{mode}", MATRIX[f"{mode}_fp32_3"])
    ended = launch(2, config, logs=runs.root / f"logs_{mode}", module="tests.support.partitions")
    assert ended.codes == [0, 0], str(ended)
    for printed in ended.stdout:
        pieces, held = map(json.loads, printed.splitlines()[-2:])
        # The first block of a LoRA has no input with a gradient.
        assert pieces == [f"transformer_blocks.{n}" for n in range(mode == "lora", 2)]
        assert any(".attn1." in name for name in held)
        assert (mode == "lora") == any(".lora_A." in name for name in held)
        for name, (whole, kept, present) in held.items():
            assert (kept, present) == (math.ceil(whole / 2), 0), name


@pytest.fixture(scope="module")
def skipping(
    model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, dict[str, Any]]]:
    """On each of 2 processes: what spoiled steps left behind, by config."""
    made = Runs(tmp_path_factory.mktemp("skipping"), model_folder, paired_dataset)
    tokens = int(paired_dataset.manifest.target_tokens().max())
    cut = {"batching": {"samples_per_step": SAMPLES, "max_tokens_per_pack": tokens}}
    configs = [made.config(name, {**blocks, **cut}) for name, blocks in SKIPPING.items()]
    ended = launch(2, *configs, logs=made.root / "logs", module="tests.support.skipping", timeout_s=300.0)
    assert ended.codes == [0, 0], str(ended)
    printed = [[json.loads(line) for line in text.splitlines() if line[0] == "{"] for text in ended.stdout]
    return [dict(zip(SKIPPING, found, strict=True)) for found in printed]


@pytest.mark.parametrize("name", SKIPPING)
def test_a_step_that_is_not_finite_leaves_no_trace(skipping: list[dict[str, Any]], name: str) -> None:
    """On both ranks, though only one was spoiled; the step after it gives what it would have given without it."""
    for rank in skipping:
        undisturbed = rank[name].pop("undisturbed")
        assert undisturbed["finite"]
        assert undisturbed["micro-steps"] > 1
        assert undisturbed["updates"]
        assert set(undisturbed["updates"]) == {2.0}
        for spoiled, found in rank[name].items():
            assert found == {"finite": False, "kept": True, "goes on": True}, spoiled
