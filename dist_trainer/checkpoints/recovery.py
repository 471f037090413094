"""Which checkpoint a launch goes on from: the newest whose files are, byte for byte, what was saved.

Every rank reads its share of a checkpoint's files, so that the check takes about as long as the loading after it.
"""

from __future__ import annotations

import json
from pathlib import Path

from dist_trainer.checkpoints.checkpoint import Checkpoint, Damaged, open_checkpoint
from dist_trainer.checkpoints.kept import (
    LATEST,
    name_of,
    point_latest,
    set_aside,
    steps_there,
    were_set_aside,
)
from dist_trainer.dist import Gathering
from dist_trainer.watch import progress
from shards.errors import InputError


def recover(folder: Path, gathering: Gathering) -> Checkpoint | None:
    """The newest good checkpoint below `folder`, the same on every rank; None where nothing has been saved yet.

    Rank 0 renames the newer, damaged ones, says so, and puts `latest` right. Raises InputError, alike on every rank,
    when there are checkpoints but no good one: a run never begins again at its first step by itself.
    """
    main = gathering.world.is_main
    listed = [steps_there(folder), were_set_aside(folder)] if main else []
    steps, aside = json.loads(gathering.share("checkpoints", json.dumps(listed)))
    damaged: dict[int, str] = {}
    for step in reversed(steps):
        checkpoint, wrong = _examine(folder, step, gathering)
        if checkpoint:
            if main:
                _settle(folder, step, damaged)
            return checkpoint
        damaged[step] = wrong
    if damaged or aside:
        found = "; ".join(
            [*damaged.values(), *(f"{folder / name} was found damaged before" for name in aside)]
        )
        raise InputError(
            f"no good checkpoint to go on from: {found}. Put one back from a copy, or begin anew in another output_dir"
        )
    return None


def _examine(folder: Path, step: int, gathering: Gathering) -> tuple[Checkpoint | None, str]:
    """The checkpoint of a step when every rank finds its share of the files good, else what is wrong with it."""
    rank, size = gathering.world.rank, gathering.world.size
    checkpoint: Checkpoint | None = None
    own: tuple[str, int | None] = ("", None)
    try:
        checkpoint = open_checkpoint(folder, step, slice(rank, None, size))
        for file in range(rank, len(checkpoint.files), size):
            checkpoint.verify(file)
            progress.moved()
    except Damaged as error:
        own = (str(error), error.file)
    purpose = f"checkpoint of step {step}"
    told = [json.loads(text) for text in gathering.collect(f"{purpose}: reading", json.dumps(own))]
    blamed = next(((other, *what) for other, what in enumerate(told) if what[0]), None)
    if blamed and blamed[0]:
        _confirm(folder, step, *blamed)
    wrong = gathering.share(purpose, blamed[1] if blamed else "")
    return (None if wrong else checkpoint), wrong


def _confirm(folder: Path, step: int, rank: int, wrong: str, file: int | None) -> None:
    """Look at what another rank found damaged: where it is good from here, that rank's host is what is wrong."""
    try:
        checkpoint = open_checkpoint(folder, step)
        if file is not None:
            checkpoint.verify(file)
    except Damaged:
        return
    raise RuntimeError(
        f"rank {rank} finds {wrong}; rank 0 finds it good: look at the storage of rank {rank}'s host"
    )


def _settle(folder: Path, step: int, damaged: dict[int, str]) -> None:
    """Let nothing newer than the good checkpoint of `step` look like one, and `latest` name it."""
    for bad, wrong in damaged.items():
        try:
            aside = set_aside(folder, bad)
        except OSError as error:
            raise InputError(f"{folder / name_of(bad)}: is damaged and cannot be renamed: {error}") from error
        print(
            f"damaged checkpoint: {wrong}; kept as {aside.name}, which may be deleted; going on from step {step}",
            flush=True,
        )
    latest = folder / LATEST
    if not latest.is_file() or latest.read_text(errors="replace").strip() != name_of(step):
        print(f"{latest}: now names {name_of(step)}, the newest good checkpoint", flush=True)
        point_latest(folder, step)
