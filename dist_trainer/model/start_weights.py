"""A run's start weights: decided at its first launch, and an adapter's put into a model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, NamedTuple

import torch

from dist_trainer.checkpoints.checkpoint import MASTER, Checkpoint, open_checkpoint
from dist_trainer.checkpoints.kept import steps_there
from dist_trainer.config import RunConfig, load
from dist_trainer.config.model import LoraConfig
from dist_trainer.dist import Gathering
from dist_trainer.model.adapter_file import read_adapter
from dist_trainer.model.start import SETTING, Start, find_start
from dist_trainer.model.weights import opened
from dist_trainer.rundir import RunFolder, RunState
from dist_trainer.watch import progress
from shards.errors import InputError


class _Module(NamedTuple):
    """One module's pair: its rank, alpha / rank, and what reads A [rank, in] and B [out, rank]."""

    rank: int
    scale: float
    down: Callable[[], torch.Tensor]
    up: Callable[[], torch.Tensor]


def checkpoint_of(start: Start) -> Checkpoint:
    """The checkpoint that a start names. Raises InputError when it is damaged."""
    return open_checkpoint(start.path.parent, int(start.path.name.removeprefix("step_")))


def check_rank(start: Start, lora: LoraConfig) -> None:
    """Raise InputError, naming both ranks, where an adapter is of another rank than is to be trained."""
    with _modules(start) as modules:
        ranks = {module.rank for module in modules.values()}
    if ranks != {lora.rank}:
        found = ", ".join(map(str, sorted(ranks)))
        cure = (
            f"set lora.rank to {found}"
            if len(ranks) == 1
            else "its modules differ, so it cannot be trained on"
        )
        raise InputError(f"{SETTING}: {start.place}: its rank is {found}, lora.rank is {lora.rank}; {cure}")


def decided_start(
    config: RunConfig, before: RunState | None, folder: RunFolder, gathering: Gathering
) -> tuple[Start | None, Start | None]:
    """What the run starts from, and what of it this launch has to read: nothing that the run's own checkpoints hold.

    Rank 0 decides for all, at the run's first launch. Raises InputError, on rank 0, for weights that cannot be started
    from.
    """
    found = ""
    if gathering.world.is_main and before:
        found = json.dumps(before.started_from or {})
    elif gathering.world.is_main and config.model.load_checkpoint:
        start = find_start(config.model.load_checkpoint, config.model.training_mode)
        if start.kind == "adapter":
            assert config.lora is not None, "the config's rules require a lora block in lora mode"
            check_rank(start, config.lora)
        found = json.dumps(asdict(start))
        print(f"starting from {start.place}", flush=True)
    told = json.loads(gathering.share("start weights", found) or "{}")
    saved = gathering.world.is_main and bool(steps_there(folder.checkpoints))
    saved = gathering.share("start weights: needed", "saved" if saved else "") != ""
    if not told:
        return None, None
    decided = Start(**told)
    # Checkpoints hold what is trained: of a LoRA on a model that was trained before, not that model.
    is_trained = decided.kind == "adapter" or config.model.training_mode == "full"
    return decided, None if saved and is_trained else decided


def start_adapter(model: Any, start: Start, lora: LoraConfig) -> list[str]:
    """Set a model's fresh adapter from `start`, so that it changes the model just as it does where it comes from.

    A strength (alpha / rank) that is not the config's goes into B. Returns notes for the user. Raises InputError where
    the adapter has modules that the config does not train, or does not fit the model.
    """
    parameters = dict(model.named_parameters())
    ours = {name.split(".lora_A.")[0]: name for name in parameters if ".lora_A." in name}
    scales = set()
    with _modules(start) as modules:
        _check_modules(model, start, set(modules), set(ours))
        for module, name in ours.items():
            if module not in modules:
                continue
            source = modules[module]
            scales.add(source.scale)
            factor = source.scale * lora.rank / lora.alpha
            _set(parameters[name], source.down(), start, module)
            up = parameters[name.replace(".lora_A.", ".lora_B.")]
            _set(up, source.up().float() * factor, start, module)
            progress.moved()
        lacking = sorted(ours.keys() - modules.keys())
    return _notes(start, lora, scales, lacking)


def _notes(start: Start, lora: LoraConfig, scales: set[float], lacking: list[str]) -> list[str]:
    notes = []
    own = lora.alpha / lora.rank
    if scales != {own}:
        told = ", ".join(f"{scale:g}" for scale in sorted(scales))
        notes.append(
            f"{SETTING}: its alpha / rank is {told}, of this run {own:g}; its weights are scaled, it acts as before"
        )
    if lacking:
        notes.append(
            f"{SETTING}: has nothing for {len(lacking)} modules, such as {lacking[0]}; they start afresh"
        )
    return notes


def _set(parameter: torch.nn.Parameter, value: torch.Tensor, start: Start, module: str) -> None:
    if parameter.shape != value.shape:
        raise InputError(
            f"{SETTING}: {start.place}: does not fit the model: {module} has {tuple(value.shape)} there, "
            f"{tuple(parameter.shape)} here; was it made for another base model?"
        )
    parameter.data.copy_(value)


def _check_modules(model: Any, start: Start, theirs: set[str], ours: set[str]) -> None:
    extra = sorted(theirs - ours)
    if not extra:
        return
    known = {name for name, _ in model.named_modules()}
    if unknown := [name for name in extra if name not in known]:
        raise InputError(
            f"{SETTING}: {start.place}: {unknown[0]} is no module of the model; was it made for another one?"
        )
    raise InputError(
        f"{SETTING}: {start.place}: trains {len(extra)} modules that lora.target_modules leaves out, such as "
        f"{extra[0]}; add {_ends(extra)} there"
    )


def _ends(modules: list[str]) -> str:
    """The shortest names that lora.target_modules knows the modules by: `to_q`, `ff.net.2`."""
    ends = {module.partition(".attn1.")[2] or module.partition(".attn2.")[2] or module for module in modules}
    ends = {end[end.index("ff.") :] if "ff." in end else end for end in ends}
    return ", ".join(sorted(ends))


@contextmanager
def _modules(start: Start) -> Iterator[dict[str, _Module]]:
    """The pairs of a start by module, to be read within the block."""
    if start.is_checkpoint:
        yield _of_checkpoint(start)
        return
    found = read_adapter(start.path)
    with opened(start.path, "pt", SETTING) as file:

        def reads(name: str) -> Callable[[], torch.Tensor]:
            return lambda: file.get_tensor(name)

        yield {
            module: _Module(pair.rank, pair.scale, reads(pair.down), reads(pair.up))
            for module, pair in found.pairs.items()
        }


def _of_checkpoint(start: Start) -> dict[str, _Module]:
    checkpoint = checkpoint_of(start)
    config = load(RunFolder(start.path.parent.parent).config)
    assert config.lora is not None, "a run that saved an adapter has a lora block"
    scale = config.lora.alpha / config.lora.rank

    def reads(name: str) -> Callable[[], torch.Tensor]:
        shape = checkpoint.shapes[name]
        return lambda: checkpoint.read(name, 0, math.prod(shape), (MASTER,))[MASTER].reshape(shape)

    downs = [name for name in checkpoint.shapes if ".lora_A." in name]
    return {
        name.split(".lora_A.")[0]: _Module(
            checkpoint.shapes[name][0], scale, reads(name), reads(name.replace(".lora_A.", ".lora_B."))
        )
        for name in downs
    }
