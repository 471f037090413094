"""From a config to the parts of a run, each checked against the others before anything large is loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from dist_trainer.config import RunConfig
from dist_trainer.feed import flow
from dist_trainer.feed.conditioning import Recipe
from dist_trainer.feed.data import make_plan
from dist_trainer.feed.feed import Feeding
from dist_trainer.model.deepspeed_config import deepspeed_config
from dist_trainer.model.engine import Engine
from dist_trainer.model.family import FAMILIES
from dist_trainer.model.lora import add_adapter, is_adapters
from dist_trainer.model.masters import Exact, of_adapter, of_checkpoint, of_files, set_masters
from dist_trainer.model.model import load_transformer, stored_of
from dist_trainer.model.optim import make_optimizer
from dist_trainer.model.start import Start
from dist_trainer.model.start_weights import start_adapter
from dist_trainer.rundir import RunState
from dist_trainer.world import World
from shards.dataset.opened import Dataset
from shards.errors import InputError
from shards.plan import Plan
from shards.reader import Reader
from shards.storage.cache import Cache


@dataclass(frozen=True)
class Data:
    """The dataset of a run, its plan, how the plan is fed, and the config.json of the model it is for."""

    dataset: Dataset
    plan: Plan
    feeding: Feeding
    transformer: Mapping[str, Any]


def dtype_of(config: RunConfig) -> torch.dtype:
    """What the model computes in."""
    return torch.bfloat16 if config.acceleration.precision == "bf16" else torch.float32


def build_data(config: RunConfig, dataset: Dataset, state: RunState) -> Data:
    """The plan and the feed. Raises InputError when dataset, model and batching do not fit each other."""
    planned = make_plan(config, dataset, state)
    recipe = Recipe(
        scale=dataset.info.scale,
        patch=planned.shape.patch,
        mode=config.conditioning.mode,
        first_frame_p=config.conditioning.first_frame_conditioning_p,
        causal=config.model.causal_positions,
        sampling=flow.Sampling(
            config.flow_matching.timestep_sampling_mode, **config.flow_matching.sampling.model_dump()
        ),
        seed=config.seed,
    )
    feeding = Feeding(
        recipe,
        planned.cap,
        planned.shape.quadratic,
        planned.transformer["in_channels"],
        planned.shape.text_width,
        config.batching.loss_weighting,
    )
    return Data(dataset, planned.plan, feeding, planned.transformer)


def build_engine(config: RunConfig, world: World, start: Start | None = None) -> Engine:
    """The model, with its adapter in lora mode, in the engine; its weights are those of `start` where it has them.

    What is read and trained is exact: its master weights are float32, whatever the model computes in.
    """
    ds_config = deepspeed_config(config, world.device.type == "cuda")
    whole = start if start and start.kind == "full" else None
    exact: Exact | None = None
    model = load_transformer(config.model.model_source, dtype_of(config), ds_config, world.rank, whole)
    if config.model.training_mode == "lora":
        assert config.lora is not None, "the config's rules require a lora block in lora mode"
        lora = config.lora
        add_adapter(model, lora.rank, lora.alpha, lora.dropout, lora.target_modules, config.seed)
        if start and start.kind == "adapter":
            for name, parameter in model.named_parameters():
                if is_adapters(name):
                    parameter.data = parameter.data.float()
            for note in start_adapter(model, start, lora):
                if world.is_main:
                    print(f"note: {note}", flush=True)
            exact = of_adapter(model)
        for parameter in model.parameters():
            if parameter.requires_grad:
                # The base is on its device already (zero.Init puts it there); DeepSpeed will not move the rest.
                parameter.data = parameter.data.to(world.device, dtype_of(config))
    elif whole and whole.is_checkpoint:
        exact = of_checkpoint(whole)
    else:
        exact = of_files(stored_of(config.model.model_source, whole))
    if config.optimization.enable_gradient_checkpointing:
        model.enable_gradient_checkpointing()
    model.train()
    blocks = FAMILIES[type(model).__name__].blocks(model)
    engine = Engine(model, lambda parameters: make_optimizer(parameters, config), ds_config, world, blocks)
    if exact:
        set_masters(engine, exact, dtype_of(config))
    return engine


def open_reader(config: RunConfig, dataset: Dataset) -> Reader:
    """What reads the samples of this process. Raises InputError for a cache folder that cannot be used."""
    data = config.data
    try:
        cache = Cache(Path(data.cache_dir), int(data.cache_gib * (1 << 30))) if data.cache_dir else None
    except InputError as error:
        raise InputError(f"data.cache_dir: {error}") from error
    return Reader(dataset, threads=max(1, data.num_dataloader_workers), cache=cache)
