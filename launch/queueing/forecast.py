"""What a run will be on a number of ranks, or why it cannot be, known before it is queued. Imports without torch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.config import RunConfig, notices
from dist_trainer.feed.data import Planned, check_heldout, make_plan, open_parts, run_state
from dist_trainer.model.family import vae_of
from dist_trainer.model.start import find_start
from dist_trainer.model.targets import check_targets
from dist_trainer.model.weights import shapes_of, stored_tensors
from dist_trainer.provenance import mismatches
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import STOP_NAME
from dist_trainer.validation.cost import HeldoutCost, heldout_cost
from dist_trainer.validation.request import check as check_videos
from dist_trainer.world import World
from shards.dataset.opened import Dataset
from shards.efficiency import Efficiency, advice, report
from shards.errors import InputError
from shards.source import part

_MEASURED_STEPS = 20  # as the trainer looks at when it starts


@dataclass(frozen=True)
class Forecast:
    """A run on `ranks` ranks. `samples`: of the dataset; `tokens_per_step` and `samples_per_step`: means.

    `cap`: most tokens in a pack. `packing`: how its steps lay out. `held_out`: what is measured of samples that are
    held out, where some are. `notes`: what a user may want to change.
    """

    ranks: int
    samples: int
    steps: int
    epochs: float
    samples_per_step: float
    tokens_per_step: float
    cap: int
    packing: Efficiency
    held_out: HeldoutCost | None
    notes: tuple[str, ...]

    def __str__(self) -> str:
        packing = self.packing
        lines = (
            f"{self.steps} steps, {self.epochs:.2f} epochs of {self.samples} samples",
            f"a step: {self.samples_per_step:.1f} samples, {self.tokens_per_step:.0f} tokens, "
            f"{packing.micro_steps:.1f} micro-steps of at most {self.cap} tokens a rank",
            f"ranks: {self.ranks}; {packing.useful:.1%} of their time is useful, {packing.idle:.1%} of packs idle, "
            f"dearest pack to mean {packing.balance:.2f}",
            *([str(self.held_out)] if self.held_out else []),
            *(f"note: {note}" for note in self.notes),
        )
        return "\n".join(lines)


def forecast(config: RunConfig, ranks: int) -> Forecast:
    """What training `config` on `ranks` ranks will be. Reads the dataset's manifest, and no weights of the transformer.

    Raises InputError, with the trainer's own words, for what the trainer would refuse when it starts: no such dataset
    or model, one that does not fit the other, a sample larger than the cap, a folder of another run. Also for a folder
    that cannot be written, and one in which STOP lies, where the job would only end again.
    """
    if ranks < 1:
        raise InputError(f"{ranks} ranks: a run needs at least one")
    folder = RunFolder(Path(config.output_dir))
    before = folder.read_state()
    check_beginning(config)
    dataset, held_out = open_parts(config)
    state = run_state(config, dataset, World(0, ranks, 0), before)
    if before:
        folder.check_same(before, state)
    _check_engine(config)
    # From here on a hub may be asked.
    _check_vae(config, [part for part in (dataset, held_out) if part])
    planned = make_plan(config, dataset, state)
    if held_out:
        check_heldout(config, held_out, planned.transformer)
    check_videos(config, dataset, planned.shape.patch)
    _check_model(config)
    done = folder.steps_done()
    finished = f"all {done} steps are done; raise optimization.steps to go on"
    return _told(config, planned, held_out, ranks, [finished] if done >= config.optimization.steps else [])


def _told(
    config: RunConfig, planned: Planned, held_out: Dataset | None, ranks: int, notes: list[str]
) -> Forecast:
    plan, quadratic = planned.plan, planned.shape.quadratic
    found = report(
        plan.tokens, plan.ids, plan.batching, [ranks], planned.cap, quadratic, plan.seed, _MEASURED_STEPS
    )
    notes += [*notices(config), *filter(None, [advice(found)])]
    cost = None
    if held_out:
        cost = heldout_cost(config, held_out, plan, planned.shape.patch, quadratic, planned.cap, found[0])
        notes += cost.notes
    steps = config.optimization.steps
    return Forecast(
        ranks=ranks,
        samples=len(plan.ids),
        steps=steps,
        epochs=steps / plan.steps_per_epoch,
        samples_per_step=len(plan.ids) / plan.steps_per_epoch,
        tokens_per_step=float(plan.tokens.sum()) / plan.steps_per_epoch,
        cap=planned.cap,
        packing=found[0],
        held_out=cost,
        notes=tuple(notes),
    )


def check_beginning(config: RunConfig) -> None:
    """Raise InputError for what keeps a run from beginning or going on, whatever it trains on: a folder that cannot be
    written or in which STOP lies, and weights to start from that are not there, or not of a kind that it starts from.
    """
    folder = RunFolder(Path(config.output_dir))
    _check_folder(folder)
    if config.model.load_checkpoint and not folder.read_state():
        find_start(config.model.load_checkpoint, config.model.training_mode)


def _check_folder(folder: RunFolder) -> None:
    """Raise InputError where the run's folder, or the next one above it that is there, takes no files."""
    stop = folder.root / STOP_NAME
    if stop.exists():
        raise InputError(
            f"{stop} is there: the job would end at once; `ltx-launch resume {folder.root}` removes it and goes on"
        )
    there = folder.root.absolute()
    while not there.exists() and there != there.parent:
        there = there.parent
    reason = "" if os.access(there, os.W_OK | os.X_OK) else f"no permission to write in {there}"
    if not there.is_dir():
        reason = f"{there} is a file"
    if reason:
        raise InputError(f"output_dir: {folder.root}: cannot be written: {reason}; choose another folder")


def _check_vae(config: RunConfig, datasets: Sequence[Dataset]) -> None:
    """Raise InputError where another VAE encoded a dataset.

    Only where one names another model are weights of the VAE compared, which takes torch and some seconds.
    """
    source = config.model.model_source
    kind = vae_of(source)
    others = [one for one in datasets if one.info.vae.source != source or one.info.vae.kind not in ("", kind)]
    if refusal := mismatches(source, kind, others):
        raise InputError(refusal)


def _check_engine(config: RunConfig) -> None:
    """Raise InputError for settings of the user's own that DeepSpeed refuses; without any, torch is not needed."""
    if not config.deepspeed.config:
        return
    from dist_trainer.model.deepspeed_config import deepspeed_config
    from dist_trainer.model.engine import check_settings

    check_settings(deepspeed_config(config, on_gpu=False))


def _check_model(config: RunConfig) -> None:
    """Raise InputError where files of the weights are missing or cut, or lora.target_modules names no layer.

    Only headers are read, and only of a model on this file system: nothing is fetched from the hub for it.
    """
    source = config.model.model_source
    if not Path(source).expanduser().exists():
        return
    shapes = shapes_of(stored_tensors(part(source, "transformer")))
    if config.lora and config.model.training_mode == "lora":
        # Of a transformer's weights those of its linear layers alone have two dimensions.
        linear = [name for name, shape in shapes.items() if len(shape) == 2 and name.endswith(".weight")]
        check_targets([name.removesuffix(".weight") for name in linear], config.lora.target_modules)
