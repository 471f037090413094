"""TensorBoard, the dashboard of a run: `tensorboard --logdir RUN/tensorboard`."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from dist_trainer.board.sink import Setting

# Charts of the tab Custom Scalars, by group. A name is a regular expression that a curve's name begins with.
_CHARTS: dict[str, dict[str, tuple[str, ...]]] = {
    "loss": {
        "training and held out": ("train/loss$", "heldout/loss$", "heldout_ema/loss$"),
        "training, by noise level": (r"train/loss_sigma_",),
        "training, by tokens": (r"train/loss_length_",),
        "held out, by noise level": (r"heldout/loss_sigma_",),
        "held out, with its own, another's and no reference": (r"heldout/reference_",),
    },
    "optimizer": {
        "learning rate": ("train/learning_rate",),
        "gradient norm": ("train/grad_norm",),
        "skipped steps": ("train/skipped_total",),
    },
    "speed": {
        "tokens per second": ("speed/tokens_per_s",),
        "samples per second": ("speed/samples_per_s",),
        "share of the devices' peak": ("speed/mfu", "speed/hfu"),
        "seconds of a step": ("time/step_s", "time/forward_s", "time/data_wait_s"),
        "seconds beside the steps": ("time/save_s", "time/heldout_s", "time/validation_s"),
    },
    "ranks": {
        "busiest rank over the mean": ("balance/measured", "balance/planned"),
        "packing": ("pack/efficiency", "pack/idle"),
        "micro-steps": ("pack/micro_steps",),
        "memory, GiB": ("memory/",),
    },
    "data": {"replaced and skipped samples": ("data/replaced_total", "data/skipped_samples")},
}


class TensorBoard:
    """Events in a folder; those of steps after `after_step`, which a killed run had reached, are hidden."""

    def __init__(self, folder: Path, after_step: int) -> None:
        self._writer = SummaryWriter(str(folder), purge_step=after_step + 1)
        self._new = after_step == 0
        self._writer.add_custom_scalars(
            {
                group: {title: ["Multiline", list(names)] for title, names in charts.items()}
                for group, charts in _CHARTS.items()
            }
        )

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Points of curves, at once to be seen."""
        for name, value in figures.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def text(self, name: str, markdown: str) -> None:
        """A text of the tab Text."""
        self._writer.add_text(name, markdown, 0)

    def lengths(self, name: str, values: np.ndarray) -> None:
        """A histogram, once in a run's life."""
        if self._new:
            self._writer.add_histogram(name, values, 0)

    def video(self, name: str, gif: bytes, step: int) -> None:
        """A picture that moves."""
        with Image.open(io.BytesIO(gif)) as picture:
            width, height = picture.size
        image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=gif)
        self._add(Summary(value=[Summary.Value(tag=name, image=image)]), step)
        self._writer.flush()

    def settings(self, settings: Mapping[str, Setting], judged_by: tuple[str, ...]) -> None:
        """A row of the tab HParams, where runs of one folder are compared."""
        for summary in hparams(dict(settings), dict.fromkeys(judged_by, 0)):
            self._add(summary, None)

    def close(self, failed: bool) -> None:
        """Flush and close; it has no word for a run that failed."""
        self._writer.close()

    def _add(self, summary: Summary, step: int | None) -> None:
        self._writer._get_file_writer().add_summary(summary, step)
