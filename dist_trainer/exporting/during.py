"""Exports that a run makes itself: with its checkpoints, where that is asked for, and at its end."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError

from dist_trainer.config import RunConfig
from dist_trainer.dist import Gathering
from dist_trainer.exporting.export import Format, Wanted, export
from dist_trainer.rundir import RunFolder
from dist_trainer.watch import progress
from shards.errors import InputError

EXPORT_S = 12 * 3600.0  # tens of GB on a slow disk; the watch sees an export that stands still


def export_saved(config: RunConfig, folder: RunFolder, step: int, gathering: Gathering) -> None:
    """Export the checkpoint just saved, from rank 0, where checkpoints.export asks for it; all ranks come together.

    An export that fails, for lack of room perhaps, is said and the run goes on: the checkpoint holds all of it. The
    last step is left to the end of the run.
    """
    formats = config.checkpoints.export
    if formats == "none" or step == config.optimization.steps:
        return
    progress.doing("exporting")
    if gathering.world.is_main:
        try:
            export(folder.root, step, Wanted(formats))
        except (InputError, OSError, SafetensorError) as error:
            print(
                f"export of step {step} failed: {error}; the run goes on, and `ltx-train export {folder.root} --step "
                f"{step}` does it again while its checkpoint is there",
                flush=True,
            )
    gathering.meet("export", max(EXPORT_S, gathering.timeout_s))


def export_end(config: RunConfig, folder: RunFolder) -> Path:
    """Export the run's last checkpoint: what is usual, and what checkpoints.export asks for beside it."""
    asked = config.checkpoints.export
    formats: Format | None = "both" if asked in ("comfyui", "both") else None
    return export(folder.root, None, Wanted(formats))
