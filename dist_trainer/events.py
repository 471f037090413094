"""What happens around the steps of a run: figures, saves, and looks at the model between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack

from dist_trainer.begun import Begun
from dist_trainer.checkpoints.due import is_saved, save_as_asked
from dist_trainer.exporting.run_exports import export_resumed, export_saved
from dist_trainer.figures.metrics import StepMetrics
from dist_trainer.loop import Events
from dist_trainer.schedule import lr_at
from dist_trainer.stop import Wish
from dist_trainer.validation.measuring import Measuring, measured_at, open_heldout
from dist_trainer.validation.prompts import Cases
from dist_trainer.validation.record import forget
from dist_trainer.validation.sampler import Sampler
from shards.dataset.opened import Dataset

Look = Callable[[int], Wish]


def open_looks(run: Begun, cases: Cases | None, held_out: Dataset | None, stack: ExitStack) -> list[Look]:
    """What looks at the model before the first step and after saves, in this order; `stack` closes what is opened.

    `cases`: what sample videos are made from, where some are wanted.
    Each gets the step, comes to pass on all ranks together, and returns, alike on all, what is asked of the run then.
    """
    looks: list[Look] = []
    if run.board:
        forget(run.folder.samples, run.start)
    if held_out:
        heldout, reader = open_heldout(run.config, held_out, run.data, run.gathering.world)
        stack.enter_context(reader)
        measured = measured_at(run.folder, run.start, run.gathering)
        looks.append(Measuring(run, heldout, measured).at)
    if cases:
        looks.append(Sampler(run, cases).at)
    return looks


def open_events(run: Begun, looks: Sequence[Look]) -> Events:
    """What the loop calls."""
    config, board, ema = run.config, run.board, run.ema

    def stepped(metrics: StepMetrics) -> None:
        if ema and metrics.skipped is None:
            ema.update()
        if board:
            board.step(metrics)

    def sync_logs() -> None:
        if board:
            board.sync()

    def save(step: int, wish: Wish) -> Wish:
        took: list[float] = []
        around = (run.folder, run.requests, run.gathering)
        wish = save_as_asked(step, wish, config, run.engine, ema, *around, sync_logs, took.append)
        if took and board:
            board.figures(step, {"time/save_s": took[0]})
        # Before a job's end time is short: the checkpoint is exported when the run comes back.
        if took and wish is not Wish.COME_BACK:
            wish = max(wish, export_saved(config, run.folder, step, run.requests, run.gathering))
        return wish

    def validate(step: int) -> Wish:
        if step == run.start:
            wish = export_resumed(config, run.folder, step, run.requests, run.gathering)
            if wish >= Wish.COME_BACK:
                return wish
        for look in looks:
            if (wish := look(step)) >= Wish.COME_BACK:
                done = step == run.start or is_saved(step, run.folder, run.gathering)
                return wish if done else save(step, wish)
        return Wish.NONE

    return Events(
        learning_rate=lambda step: lr_at(step, config.optimization),
        on_step=stepped,
        on_save=save,
        on_validate=validate,
        start=run.start,
        steps=config.optimization.steps,
    )
