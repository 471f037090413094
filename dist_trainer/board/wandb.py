"""Weights & Biases, where the config asks for it: the same figures, texts and videos as in TensorBoard."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from dist_trainer.board.sink import Setting
from dist_trainer.config.output import WandbConfig
from dist_trainer.rundir import RunFolder, write_text
from shards.errors import InputError

_STEP = "step"


class Wandb:
    """A run there. One that goes on after a restart goes on there too, by the id kept in the run's folder."""

    def __init__(self, config: WandbConfig, run: RunFolder) -> None:
        """Raises InputError where the service refuses the run."""
        import wandb  # an extra that few have

        self._wandb: Any = wandb
        self._videos = config.log_validation_videos
        try:
            self._run = wandb.init(
                project=config.project,
                entity=config.entity,
                tags=list(config.tags),
                name=run.root.name,
                id=_id(run.root / "wandb_id"),
                resume="allow",
                dir=str(run.root),
            )
        except wandb.errors.Error as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"wandb.enabled: {reason}; `wandb login`, WANDB_MODE=offline, or set it to false"
            ) from error
        # Its own steps only grow; a run that goes on from a checkpoint comes by some of them twice.
        self._run.define_metric("*", step_metric=_STEP)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Points of curves over the step."""
        self._run.log({_STEP: step, **figures})

    def text(self, name: str, markdown: str) -> None:
        """A text of the run's summary."""
        self._run.summary[name] = markdown

    def lengths(self, name: str, values: np.ndarray) -> None:
        """A histogram."""
        self._run.log({_STEP: 0, name: self._wandb.Histogram(np_histogram=np.histogram(values, bins=64))})

    def video(self, name: str, gif: bytes, step: int) -> None:
        """A video, if the config wants them there."""
        if self._videos:
            with TemporaryDirectory() as folder:
                path = Path(folder) / "video.gif"
                path.write_bytes(gif)
                # It is copied at once.
                self._run.log({_STEP: step, name: self._wandb.Video(str(path), format="gif")})

    def settings(self, settings: Mapping[str, Setting], judged_by: tuple[str, ...]) -> None:
        """The run's config there."""
        self._run.config.update(dict(settings), allow_val_change=True)

    def close(self, failed: bool) -> None:
        """Send what is left, and whether the run failed."""
        self._run.finish(exit_code=int(failed))


def _id(path: Path) -> str:
    """The run's id there, made at its first launch."""
    if not path.is_file():
        write_text(path, secrets.token_hex(6))
    return path.read_text(encoding="utf-8").strip()
