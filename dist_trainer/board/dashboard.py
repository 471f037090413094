"""What a run's board shows from the start: its config, a card of what is trained on what, and its samples' lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from importlib.util import find_spec

from dist_trainer.board.board import Board
from dist_trainer.board.sink import Setting, Sink
from dist_trainer.board.tensorboard import TensorBoard
from dist_trainer.board.wandb import Wandb
from dist_trainer.build import Data
from dist_trainer.config import RunConfig, dump
from dist_trainer.model.engine import Engine
from dist_trainer.rundir import RunFolder
from dist_trainer.version import __version__
from shards.errors import InputError
from shards.storage.masked import masked


def check_sinks(config: RunConfig) -> None:
    """Raise InputError for a sink whose package is missing, before anything large is loaded."""
    if config.wandb.enabled and not find_spec("wandb"):
        raise InputError(
            "wandb.enabled: the package wandb is not installed: `pip install wandb`, or set it to false"
        )


def open_board(config: RunConfig, folder: RunFolder, start: int, data: Data, engine: Engine) -> Board:
    """The board of a run that goes on from step `start`. Raises InputError for a sink that cannot be used."""
    sinks: list[Sink] = []
    if config.tensorboard.enabled:
        sinks.append(TensorBoard(folder.tensorboard, start))
    if config.wandb.enabled:
        sinks.append(Wandb(config.wandb, folder))
    board = Board(folder, start, sinks, config.tensorboard.interval, config.optimization.steps)
    board.text("config", f"```yaml\n{masked(dump(config))}\n```")
    board.text("model card", card(config, data, engine))
    board.lengths("data/tokens", data.plan.tokens)
    judged_by = ["train/loss"]
    if config.validation.holdout or config.validation.holdout_data:
        judged_by.append("heldout/loss")
    board.settings(settings(config), tuple(judged_by))
    return board


def card(config: RunConfig, data: Data, engine: Engine) -> str:
    """What is trained on what, as a Markdown table."""
    optimization, lora, plan = config.optimization, config.lora, data.plan
    trained = sum(math.prod(shape) for shape in engine.shapes().values())
    what = "all weights"
    if config.model.training_mode == "lora" and lora:
        what = "IC-LoRA" if config.conditioning.mode == "reference_video" else "LoRA"
        what += f" of rank {lora.rank}, alpha {lora.alpha}, on {', '.join(lora.target_modules)}"
    step = f"{plan.batching.samples_per_step} samples"
    if plan.batching.tokens_per_step:
        step = f"{plan.batching.tokens_per_step:,} tokens"
    rows = {
        "base model": config.model.model_source,
        "trained": f"{what}: {trained:,} parameters",
        "dataset": f"{masked(str(data.dataset.root))}: {len(plan.ids):,} samples to train, "
        f"{int(plan.tokens.sum()):,} tokens",
        "steps": f"{optimization.steps:,}, each of {step}; {plan.steps_per_epoch:,.1f} steps an epoch",
        "optimizer": f"{optimization.optimizer_type}, learning rate {optimization.learning_rate:g}, "
        f"{optimization.scheduler_type}",
        "ranks": f"{engine.world.size}, ZeRO stage {config.deepspeed.stage}, {config.acceleration.precision}",
        "seed": str(config.seed),
        "ltx-dist-trainer": __version__,
    }
    return "\n".join(["| | |", "|-|-|", *(f"| {name} | {_cell(text)} |" for name, text in rows.items())])


def settings(config: RunConfig) -> Mapping[str, Setting]:
    """The settings by which runs are compared, by a short name; those that are null are left out.

    TensorBoard shows the first five by name until one asks for more.
    """
    optimization, batching = config.optimization, config.batching
    found: dict[str, Setting | None] = {
        "conditioning_mode": config.conditioning.mode,
        "ema_decay": optimization.ema_decay,
        "learning_rate": optimization.learning_rate,
        "loss_weighting": batching.loss_weighting,
        "max_grad_norm": optimization.max_grad_norm,
        "mix": batching.mix,
        "optimizer_type": optimization.optimizer_type,
        "precision": config.acceleration.precision,
        "samples_per_step": batching.samples_per_step,
        "scheduler_type": optimization.scheduler_type,
        "seed": config.seed,
        "steps": optimization.steps,
        "timestep_sampling_mode": config.flow_matching.timestep_sampling_mode,
        "tokens_per_step": batching.tokens_per_step,
        "training_mode": config.model.training_mode,
        "warmup_steps": optimization.warmup_steps,
        "weight_decay": optimization.weight_decay,
    }
    if config.lora and config.model.training_mode == "lora":
        found |= {"lora_alpha": config.lora.alpha, "lora_rank": config.lora.rank}
    return {name: value for name, value in found.items() if value is not None}


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
