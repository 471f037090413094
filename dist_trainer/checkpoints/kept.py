"""Which checkpoints a run keeps on disk: their names, `latest`, and how old and damaged ones are taken away.

    checkpoints/step_000500/        complete, or it would not have this name
    checkpoints/latest              name of the newest one
    checkpoints/damaged_step_.../   found damaged by a later launch, which went on from an older one

Needs no torch: a login node asks the same questions.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from dist_trainer.rundir import write_text

META = "checkpoint.json"
LATEST = "latest"
_NAME = re.compile(r"step_(\d{6,})")
_DAMAGED = "damaged_"


def name_of(step: int) -> str:
    """The name of a step's checkpoint folder."""
    return f"step_{step:06d}"


def steps_there(folder: Path) -> list[int]:
    """Steps, ascending, of all folders that are named as a checkpoint, with or without what makes one complete."""
    if not folder.is_dir():
        return []
    names = [(entry, _NAME.fullmatch(entry.name)) for entry in folder.iterdir()]
    return sorted(int(match[1]) for entry, match in names if match and entry.is_dir())


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending. What a killed save left behind is not among them."""
    return [step for step in steps_there(folder) if (folder / name_of(step) / META).is_file()]


def is_of(made: Path, checkpoint: Path) -> bool:
    """Whether what was made of a checkpoint is there, and no older than the one that has its name now.

    A run that goes on from an earlier step comes to a name again. What has outlived its checkpoint is taken as it is.
    """
    marker = checkpoint / META
    return made.exists() and (not marker.exists() or made.stat().st_mtime_ns >= marker.stat().st_mtime_ns)


def point_latest(folder: Path, step: int) -> None:
    """Let `latest` name the checkpoint of a step."""
    write_text(folder / LATEST, f"{name_of(step)}\n")


def prune(folder: Path, keep_last_n: int, good: int) -> None:
    """Delete all but the newest `keep_last_n` complete checkpoints (below 1: keep all), and never the `good` step's."""
    if keep_last_n < 1:
        return
    for step in complete_steps(folder)[:-keep_last_n]:
        if step != good:
            shutil.rmtree(take_name(folder / name_of(step)))


def take_name(checkpoint: Path) -> Path:
    """Take a checkpoint's name away: a deletion cut short must not leave something that looks complete."""
    aside = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    return aside


def sweep(folder: Path) -> None:
    """Delete what killed saves and deletions left behind."""
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in folder.glob(f".{LATEST}.*.tmp"):
        leftover.unlink(missing_ok=True)


def set_aside(folder: Path, step: int) -> Path:
    """Rename a damaged checkpoint, so that nothing takes it for one again; returns the new path."""
    aside = folder / f"{_DAMAGED}{name_of(step)}"
    number = 1
    while aside.exists():
        number += 1
        aside = folder / f"{_DAMAGED}{name_of(step)}_{number}"
    (folder / name_of(step)).rename(aside)
    return aside


def were_set_aside(folder: Path) -> list[str]:
    """Names of the damaged checkpoints that are still there."""
    return sorted(path.name for path in folder.glob(f"{_DAMAGED}step_*"))
