"""From a config to the parts of a run, each checked against the others before anything large is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from dist_trainer import flow
from dist_trainer.conditioning import Recipe
from dist_trainer.config import RunConfig
from dist_trainer.deepspeed_config import deepspeed_config
from dist_trainer.engine import Engine, check_settings
from dist_trainer.family import FAMILIES, read_config
from dist_trainer.feed import Feeding
from dist_trainer.lora import add_adapter
from dist_trainer.model import load_transformer
from dist_trainer.optim import make_optimizer
from dist_trainer.rundir import RunState
from dist_trainer.version import __version__
from dist_trainer.world import World
from shards.dataset.opened import Dataset, open_dataset
from shards.errors import InputError
from shards.pack import check_cap
from shards.plan import Batching, Plan
from shards.reader import Reader
from shards.storage.cache import Cache


@dataclass(frozen=True)
class Data:
    """The dataset of a run, its plan, and how the plan is fed."""

    dataset: Dataset
    plan: Plan
    feeding: Feeding


def dtype_of(config: RunConfig) -> torch.dtype:
    """What the model computes in."""
    return torch.bfloat16 if config.acceleration.precision == "bf16" else torch.float32


def run_state(config: RunConfig, dataset: Dataset, world: World, before: RunState | None) -> RunState:
    """What the run fixes. A step's size that the config leaves open is that of the first launch, or set now."""
    samples, tokens = config.batching.samples_per_step, config.batching.tokens_per_step
    if samples is None and tokens is None:
        samples = before.samples_per_step if before else config.samples_per_step(world.size)
        tokens = before.tokens_per_step if before else None
    return RunState(
        seed=config.seed,
        samples_per_step=samples,
        tokens_per_step=tokens,
        mix=config.batching.mix,
        loss_weighting=config.batching.loss_weighting,
        dataset=dataset.manifest.fingerprint,
        model_source=config.model.model_source,
        training_mode=config.model.training_mode,
        conditioning_mode=config.conditioning.mode,
        first_frame_conditioning_p=config.conditioning.first_frame_conditioning_p,
        sampling=f"{config.flow_matching.timestep_sampling_mode} {config.flow_matching.sampling.model_dump_json()}",
        causal_positions=config.model.causal_positions,
        optimizer="sgd" if config.optimization.optimizer_type == "sgd" else "adamw",
        lora_alpha=config.lora.alpha if config.lora and config.model.training_mode == "lora" else None,
        version=__version__,
    )


def build_data(config: RunConfig, dataset: Dataset, state: RunState) -> Data:
    """The plan and the feed. Raises InputError when dataset, model and batching do not fit each other."""
    transformer = read_config(config.model.model_source)
    shape = FAMILIES[transformer["_class_name"]].shape(transformer)
    _check_fit(config, dataset, shape.channels, shape.text_width)
    tokens = dataset.manifest.tokens(shape.patch)
    if config.conditioning.mode == "none":
        tokens = dataset.manifest.target_tokens(shape.patch)
    cap = config.batching.max_tokens_per_pack or 2 * int(tokens.max())
    check_cap(list(dataset.manifest.keys), tokens, cap)
    batching = Batching(state.samples_per_step, state.tokens_per_step, config.batching.mix)
    recipe = Recipe(
        scale=dataset.info.scale,
        patch=shape.patch,
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
        cap,
        shape.quadratic,
        transformer["in_channels"],
        shape.text_width,
        config.batching.loss_weighting,
    )
    return Data(dataset, Plan(dataset.manifest.ids, tokens, batching, config.seed), feeding)


def build_engine(config: RunConfig, world: World) -> Engine:
    """The model, with its adapter in lora mode, in the engine."""
    ds_config = deepspeed_config(config, world.device.type == "cuda")
    check_settings(ds_config)
    model = load_transformer(config.model.model_source, dtype_of(config), ds_config, world.rank)
    if config.model.training_mode == "lora":
        assert config.lora is not None, "the config's rules require a lora block in lora mode"
        lora = config.lora
        add_adapter(model, lora.rank, lora.alpha, lora.dropout, lora.target_modules, config.seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                # The base is on its device already (zero.Init puts it there); DeepSpeed will not move the rest.
                parameter.data = parameter.data.to(world.device, dtype_of(config))
    if config.optimization.enable_gradient_checkpointing:
        model.enable_gradient_checkpointing()
    model.train()
    return Engine(model, lambda parameters: make_optimizer(parameters, config), ds_config, world)


def open_data(config: RunConfig) -> Dataset:
    """The dataset the config names. Raises InputError when there is none."""
    if not config.data.preprocessed_data_root:
        raise InputError(
            "data.preprocessed_data_root: required; name a dataset that `ltx-shards encode` wrote"
        )
    try:
        return open_dataset(config.data.preprocessed_data_root)
    except InputError as error:
        raise InputError(f"data.preprocessed_data_root: {error}") from error


def open_reader(config: RunConfig, dataset: Dataset) -> Reader:
    """What reads the samples of this process. Raises InputError for a cache folder that cannot be used."""
    data = config.data
    try:
        cache = Cache(Path(data.cache_dir), int(data.cache_gib * (1 << 30))) if data.cache_dir else None
    except InputError as error:
        raise InputError(f"data.cache_dir: {error}") from error
    return Reader(dataset, threads=max(1, data.num_dataloader_workers), cache=cache)


def _check_fit(config: RunConfig, dataset: Dataset, channels: int, text_width: int) -> None:
    root = dataset.root
    if dataset.info.channels != channels:
        raise InputError(
            f"{root}: latents have {dataset.info.channels} channels, the transformer of "
            f"{config.model.model_source} takes {channels}; encode the dataset with this model's VAE"
        )
    if dataset.info.text_width != text_width:
        raise InputError(
            f"{root}: text embeddings are {dataset.info.text_width} wide, the transformer of "
            f"{config.model.model_source} takes {text_width}; encode the dataset with this model's text encoder"
        )
    if config.conditioning.mode == "reference_video":
        lacking = dataset.manifest.keys[~dataset.manifest.references.any(axis=(1, 2))]
        if len(lacking):
            named = ", ".join(str(key) for key in lacking[:5])
            raise InputError(
                f"{root}: conditioning.mode is reference_video, but {len(lacking)} of {len(dataset.manifest)} samples "
                f"have no reference ({named}); encode with a reference_path column"
            )
