"""What a person watches: the sinks (TensorBoard), metrics.jsonl, and one console line per step. Rank 0 only."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from rich.console import Console

from dist_trainer.board.sink import Setting, Sink
from dist_trainer.figures.metrics import StepMetrics
from dist_trainer.limit import limited
from dist_trainer.logs import LineLog
from dist_trainer.replaced import Replaced
from dist_trainer.rundir import RunFolder
from dist_trainer.skipped import LOSS, Skipped

_CLOSE_S = 10.0  # of all sinks together; Slurm kills 30 s after it has told a job to end


class Board:
    """Logs and sinks of a run; `after_step` is the step a resumed run goes on from, `interval` that of its curves.

    A context manager that closes it, as failed where an error leaves the block.
    """

    def __init__(
        self, run: RunFolder, after_step: int, sinks: Sequence[Sink], interval: int, total_steps: int
    ) -> None:
        self._sinks = sinks
        self._interval, self._total = interval, total_steps
        self._metrics = LineLog(run.metrics, after_step)
        self._trained = LineLog(run.trained, after_step)
        self._replaced = LineLog(run.replaced, after_step)
        self._skipped = LineLog(run.skipped, after_step)
        self._figures = LineLog(run.figures, after_step)
        self._logs = (self._metrics, self._trained, self._replaced, self._skipped, self._figures)
        self._console = Console(soft_wrap=True)

    def text(self, name: str, markdown: str) -> None:
        """Show a text about the whole run."""
        for sink in self._sinks:
            sink.text(name, markdown)

    def lengths(self, name: str, values: np.ndarray) -> None:
        """Show how numbers int64 [N] are distributed."""
        for sink in self._sinks:
            sink.lengths(name, values)

    def settings(self, settings: Mapping[str, Setting], judged_by: tuple[str, ...]) -> None:
        """Show what distinguishes the run from others, and the figures by which they are compared."""
        for sink in self._sinks:
            sink.settings(settings, judged_by)

    def figures(self, step: int, figures: Mapping[str, float]) -> None:
        """Record figures by TensorBoard name that are not of every step, such as those of a validation."""
        self._figures.write({"step": step, **_known(figures)})
        for sink in self._sinks:
            sink.figures(step, figures)

    def video(self, name: str, gif: bytes, step: int) -> None:
        """Show a video, as `moving.animated` makes it."""
        for sink in self._sinks:
            sink.video(name, gif, step)

    def step(self, metrics: StepMetrics) -> None:
        """Record one optimizer step."""
        figures = metrics.figures
        skipped = {"skipped": True} if metrics.skipped else {}
        self._trained.write({"step": metrics.step, "epochs": metrics.epochs, "ids": metrics.ids, **skipped})
        self._metrics.write({"step": metrics.step, **_known(figures)})
        for replaced in metrics.replaced:
            self._replaced.write(asdict(replaced))
            self._print(_instead(replaced))
        if metrics.skipped:
            self._skipped.write(asdict(metrics.skipped))
            self._print(_left_out(metrics.skipped))
        shown = metrics.step % self._interval == 0 or metrics.step == self._total
        # A replaced sample or a skipped step is too rare to be left to the interval.
        rare = ("data/",) * bool(metrics.replaced or metrics.skipped) + ("train/",) * bool(metrics.skipped)
        points = {name: value for name, value in figures.items() if shown or name.startswith(rare)}
        for sink in self._sinks if points else ():
            sink.figures(metrics.step, points)
        if shown:
            self._print(_line(metrics.step, self._total, figures))

    def sync(self) -> None:
        """Make the lines of all steps so far survive a power cut."""
        for log in self._logs:
            log.sync()

    def __enter__(self) -> Board:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def close(self, failed: bool = False) -> None:
        """Flush and close all sinks, which are told whether the run `failed`. It never raises, and does not wait for
        them longer than a limit: the cause of a failure, or an exit code, is still to be told.
        """
        for log in self._logs:
            with suppress(OSError):  # its lines have been handed over one by one
                log.close()
        deadline = time.monotonic() + _CLOSE_S
        for number, sink in enumerate(self._sinks):
            # One that is stuck leaves the others their share.
            share_s = max(0.0, deadline - time.monotonic()) / (len(self._sinks) - number)
            try:
                limited(partial(sink.close, failed), share_s)
            except Exception as error:
                self._print(f"warning: {type(sink).__name__}: not closed: {' '.join(str(error).split())}")

    def _print(self, line: str) -> None:
        self._console.print(line, highlight=False, markup=False)


def _known(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures as JSON takes them, which has no word for numbers that are not finite."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}


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
