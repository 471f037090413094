"""The folder of a step's sample videos, with a record of whether all are there. Rank 0 alone looks into it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from dist_trainer.checkpoints.kept import name_of, steps_there
from dist_trainer.rundir import write_text
from dist_trainer.validation.show import sweep

NAME = "validation.json"  # what was asked for, whether all that can be made is there, what failed


def forget(samples: Path, start: int) -> None:
    """Let the steps after `start`, which a run trains again, have new videos: a board hides the ones that are there."""
    for step in steps_there(samples):
        if step > start:
            (samples / name_of(step) / NAME).unlink(missing_ok=True)


def begin(folder: Path, request: str, names: Sequence[str]) -> list[str] | None:
    """The files that are to be made; None where that is done. From here on they are being made.

    `request`: a hash of all that they depend on beside the weights.
    """
    try:
        record = json.loads((folder / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        record = {}
    if record.get("complete"):
        return None
    if record.get("request") != request:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    write_text(folder / NAME, json.dumps({"request": request, "complete": False}))
    # Not asked for one by one: NFS would remember that each was not there.
    there = {entry.name for entry in folder.iterdir()}
    return [name for name in names if name not in there]


def complete(folder: Path, request: str, prompts: Mapping[str, str], failed: Mapping[str, str]) -> None:
    """Record that all is done: the prompt of each file, and why those of `failed` are not there."""
    record = {"request": request, "complete": True, "prompts": prompts, "failed": failed}
    write_text(folder / NAME, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
