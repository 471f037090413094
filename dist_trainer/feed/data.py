"""What a run trains, told from its config, its dataset and its model's config.json alone. Imports without torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_trainer.config import RunConfig
from dist_trainer.feed.holdout import check_apart, split
from dist_trainer.model.family import FAMILIES, read_config
from dist_trainer.model.shape import Shape
from dist_trainer.rundir import RunState
from dist_trainer.version import __version__
from dist_trainer.world import World
from shards.dataset.opened import Dataset, open_dataset
from shards.doctor.survey import fitting
from shards.errors import InputError
from shards.pack import check_cap
from shards.plan import Batching, Plan


@dataclass(frozen=True)
class Planned:
    """The dataset of a run and the plan over it.

    `cap`: most tokens in a pack. `transformer`, `shape`: the model's config.json, and what it says of its inputs.
    """

    dataset: Dataset
    plan: Plan
    cap: int
    transformer: Mapping[str, Any]
    shape: Shape


def open_data(config: RunConfig) -> Dataset:
    """The samples that the config trains. Raises InputError when there are none."""
    return open_parts(config)[0]


def open_parts(config: RunConfig) -> tuple[Dataset, Dataset | None]:
    """The samples that the config trains, and those that it holds out, where it does. Raises InputError as they may."""
    training = _open_training(config)
    validation = config.validation
    if validation.holdout_data is not None:
        try:
            heldout = open_dataset(validation.holdout_data)
        except InputError as error:
            raise InputError(f"validation.holdout_data: {error}") from error
        check_apart(training, heldout)
        return training, heldout
    return split(training, config.seed, validation.holdout) if validation.holdout else (training, None)


def _open_training(config: RunConfig) -> Dataset:
    if not config.data.preprocessed_data_root:
        raise InputError(
            "data.preprocessed_data_root: required; name a dataset that `ltx-shards encode` wrote"
        )
    try:
        return open_dataset(config.data.preprocessed_data_root)
    except InputError as error:
        raise InputError(f"data.preprocessed_data_root: {error}") from error


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
        load_checkpoint=config.model.load_checkpoint,
        started_from=before.started_from if before else None,
        training_mode=config.model.training_mode,
        conditioning_mode=config.conditioning.mode,
        first_frame_conditioning_p=config.conditioning.first_frame_conditioning_p,
        sampling=f"{config.flow_matching.timestep_sampling_mode} {config.flow_matching.sampling.model_dump_json()}",
        causal_positions=config.model.causal_positions,
        optimizer="sgd" if config.optimization.optimizer_type == "sgd" else "adamw",
        lora_alpha=config.lora.alpha if config.lora and config.model.training_mode == "lora" else None,
        version=__version__,
        holdout=config.validation.holdout,
    )


def make_plan(config: RunConfig, dataset: Dataset, state: RunState) -> Planned:
    """The plan of a run. Raises InputError when dataset, model and batching do not fit each other."""
    transformer = read_config(config.model.model_source)
    shape = _shape(transformer)
    tokens = _tokens(config, dataset, shape)
    cap = config.batching.max_tokens_per_pack or 2 * int(tokens.max())
    check_cap(list(dataset.manifest.keys), tokens, cap)
    batching = Batching(state.samples_per_step, state.tokens_per_step, config.batching.mix)
    return Planned(
        dataset, Plan(dataset.manifest.ids, tokens, batching, config.seed), cap, transformer, shape
    )


def check_heldout(config: RunConfig, heldout: Dataset, transformer: Mapping[str, Any]) -> None:
    """Raise InputError where the model, told by its config.json, or the config's conditioning cannot use the held-out
    samples.
    """
    setting = "holdout" if config.validation.holdout_data is None else "holdout_data"
    try:
        # Counting is a check too: of sizes that the model's patch does not divide.
        _tokens(config, heldout, _shape(transformer))
    except InputError as error:
        raise InputError(f"validation.{setting}: {error}") from error


def _shape(transformer: Mapping[str, Any]) -> Shape:
    shape: Shape = FAMILIES[transformer["_class_name"]].shape(transformer)
    return shape


def _tokens(config: RunConfig, dataset: Dataset, shape: Shape) -> np.ndarray:
    """Tokens of each sample as it is trained, int64 [N]. Raises InputError where the dataset cannot be used."""
    _check_fit(config, dataset, shape)
    manifest = dataset.manifest
    whole = manifest.target_tokens if config.conditioning.mode == "none" else manifest.tokens
    return whole(shape.patch)


def _check_fit(config: RunConfig, dataset: Dataset, shape: Shape) -> None:
    root = dataset.root
    if dataset.info.channels != shape.channels:
        raise InputError(
            f"{root}: latents have {dataset.info.channels} channels, the transformer of "
            f"{config.model.model_source} takes {shape.channels}; encode the dataset with this model's VAE"
        )
    if dataset.info.text_width != shape.text_width:
        raise InputError(
            f"{root}: text embeddings are {dataset.info.text_width} wide, the transformer of "
            f"{config.model.model_source} takes {shape.text_width}; encode the dataset with this model's text encoder"
        )
    if config.conditioning.mode == "reference_video":
        lacking = dataset.manifest.keys[~dataset.manifest.references.any(axis=(1, 2))]
        if len(lacking):
            named = ", ".join(str(key) for key in lacking[:5])
            raise InputError(
                f"{root}: conditioning.mode is reference_video, but {len(lacking)} of {len(dataset.manifest)} samples "
                f"have no reference ({named}); encode with a reference_path column"
            )
        _check_references(dataset)


def _check_references(dataset: Dataset) -> None:
    """Raise InputError for references that cannot be spread over their targets."""
    table = dataset.manifest
    wrong = np.zeros(len(table), bool)
    for grids in np.moveaxis(table.references, 1, 0):
        wrong |= grids.any(axis=1) & ~fitting(table.grid, grids)
    if wrong.any():
        named = ", ".join(str(key) for key in table.keys[wrong][:5])
        raise InputError(
            f"{dataset.root}: references of {wrong.sum()} of {len(table)} samples ({named}) are no integer fraction of "
            f"their targets' size; `ltx-shards doctor {dataset.root} --repair` leaves those samples out"
        )
