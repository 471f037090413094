"""What a person watches: TensorBoard events, metrics.jsonl, and one console line per step. Rank 0 only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from rich.console import Console
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter

from dist_trainer.metrics import StepMetrics
from dist_trainer.moving import animated
from dist_trainer.replaced import Replaced
from dist_trainer.rundir import LineLog, RunFolder
from dist_trainer.skipped import LOSS, Skipped


class Board:
    """The sinks of a run's figures; `after_step` is the step a resumed run goes on from."""

    def __init__(
        self, run: RunFolder, after_step: int, tensorboard: bool, interval: int, total_steps: int
    ) -> None:
        self._interval, self._total = interval, total_steps
        self._metrics = LineLog(run.metrics, after_step)
        self._trained = LineLog(run.trained, after_step)
        self._replaced = LineLog(run.replaced, after_step)
        self._skipped = LineLog(run.skipped, after_step)
        self._logs = (self._metrics, self._trained, self._replaced, self._skipped)
        self._console = Console(soft_wrap=True)
        # purge_step hides the events of steps that a killed run had gone past its last checkpoint.
        self._writer = SummaryWriter(str(run.tensorboard), purge_step=after_step + 1) if tensorboard else None

    def text(self, name: str, content: str) -> None:
        """Show a text (Markdown code block) in TensorBoard."""
        if self._writer:
            self._writer.add_text(name, f"```\n{content}\n```", 0)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Show figures by TensorBoard name that are not of every step, such as those of a validation."""
        if self._writer:
            for name, value in figures.items():
                self._writer.add_scalar(name, value, step)
            self._writer.flush()

    def video(self, name: str, frames: np.ndarray, fps: float, step: int) -> None:
        """Show a video uint8 [F,H,W,3], RGB, of `fps` frames per second, as a picture that moves."""
        if self._writer:
            moving = animated(frames, fps)
            image = Summary.Image(
                height=moving.height, width=moving.width, colorspace=3, encoded_image_string=moving.data
            )
            summary = Summary(value=[Summary.Value(tag=name, image=image)])
            self._writer._get_file_writer().add_summary(summary, step)
            self._writer.flush()

    def step(self, metrics: StepMetrics) -> None:
        """Record one optimizer step."""
        figures = metrics.figures
        skipped = {"skipped": True} if metrics.skipped else {}
        self._trained.write({"step": metrics.step, "epochs": metrics.epochs, "ids": metrics.ids, **skipped})
        # JSON has no word for numbers that are not finite.
        known = {name: value if math.isfinite(value) else None for name, value in figures.items()}
        self._metrics.write({"step": metrics.step, **known})
        for replaced in metrics.replaced:
            self._replaced.write(asdict(replaced))
            self._print(_instead(replaced))
        if metrics.skipped:
            self._skipped.write(asdict(metrics.skipped))
            self._print(_left_out(metrics.skipped))
        shown = metrics.step % self._interval == 0 or metrics.step == self._total
        if self._writer:
            for name, value in figures.items():
                # A replaced sample or a skipped step is too rare to be left to the interval.
                rare = (metrics.replaced and name.startswith("data/")) or (
                    metrics.skipped and name.startswith("train/")
                )
                if shown or rare:
                    self._writer.add_scalar(name, value, metrics.step)
            self._writer.flush()
        if shown:
            self._print(_line(metrics.step, self._total, figures))

    def sync(self) -> None:
        """Make the lines of all steps so far survive a power cut."""
        for log in self._logs:
            log.sync()

    def close(self) -> None:
        """Flush and close all sinks."""
        for log in self._logs:
            log.close()
        if self._writer:
            self._writer.close()

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)


def _instead(replaced: Replaced) -> str:
    wrong = f" ({replaced.wrong})" if replaced.wrong else ""
    return (
        f"step {replaced.step}: sample {replaced.key!r} of {replaced.shard} is damaged{wrong}; "
        f"trained {replaced.replacement_key!r} in its place"
    )


def _left_out(skipped: Skipped) -> str:
    whose = f" of {', '.join(map(repr, skipped.keys))}" if skipped.cause == LOSS else ""
    return f"step {skipped.step}: skipped, as the {skipped.cause}{whose} is not finite; the weights stay as they were"


def _line(step: int, total: int, figures: dict[str, Any]) -> str:
    done = int(20 * step / total)
    return (
        f"[{'=' * done}{'.' * (20 - done)}] step {step}/{total}  loss {figures['train/loss']:.4f}  "
        f"lr {figures['train/learning_rate']:.2e}  norm {figures['train/grad_norm']:.3f}  "
        f"{figures['speed/tokens_per_s']:.0f} tokens/s  {figures['time/step_s']:.2f} s/step  "
        f"packing {100 * figures['pack/efficiency']:.0f} %"
    )
