"""When a run in training saves, and what it says of that: at an interval, at its end, and when it is asked to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.checkpoints.saving import NoRoom, Piece, save
from dist_trainer.config import RunConfig
from dist_trainer.dist import Gathering
from dist_trainer.logs import append, read_log
from dist_trainer.model.ema import Ema
from dist_trainer.model.engine import Engine
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import Requests, Wish, agreed
from dist_trainer.watch import progress
from dist_trainer.world import World
from shards.errors import InputError


def expect_saves(requests: Requests, folder: RunFolder, world: World) -> None:
    """Count on saves that take as long as the last one of the job before, and say where time will be short."""
    if world.is_main:
        for record in read_log(folder.saves)[-1:]:
            requests.saved(float(record.get("seconds", 0.0)))
        _say(requests.warning())


def save_as_asked(
    step: int,
    wish: Wish,
    config: RunConfig,
    engine: Engine,
    ema: Ema | None,
    folder: RunFolder,
    requests: Requests,
    gathering: Gathering,
    sync_logs: Callable[[], None],
    on_saved: Callable[[float], None],
) -> Wish:
    """Save after a step where that is due; returns what is wished for then, alike on every rank.

    `sync_logs` brings the run's logs down to the disk before a save: a checkpoint must not outlive the record of what
    led to it. `on_saved` gets the seconds a save took. Raises InputError as `save_if_due` does.
    """
    main = gathering.world.is_main
    # Asked before the save: it makes the lead another one.
    why = requests.reason(wish) if main and wish is not Wish.NONE else ""
    began = time.perf_counter()
    saved = save_if_due(step, wish, config, engine, ema, folder, gathering, sync_logs)
    seconds = time.perf_counter() - began
    if saved:
        requests.saved(seconds)
        on_saved(seconds)
        if main:
            append(folder.saves, {"time": time.time(), "step": step, "seconds": seconds})
            _say(requests.warning())
        # What was asked for during the save is asked for at a checkpoint: no further step need be trained for it.
        later = agreed(requests, gathering)
        if later > max(wish, Wish.SAVE):
            wish, why = later, requests.reason(later)
    if saved or wish is Wish.SAVE:
        requests.answered()
    if saved and main and wish is not Wish.NONE:
        _say(f"saved after step {step}: {why}")
    return wish


def is_saved(step: int, folder: RunFolder, gathering: Gathering) -> bool:
    """Whether a step's checkpoint is there, as rank 0 sees it; alike on every rank, which ask together."""
    there = gathering.world.is_main and step in complete_steps(folder.checkpoints)
    return gathering.share("whether the step is saved", "saved" if there else "") != ""


def save_if_due(
    step: int,
    wish: Wish,
    config: RunConfig,
    engine: Engine,
    ema: Ema | None,
    folder: RunFolder,
    gathering: Gathering,
    sync_logs: Callable[[], None],
) -> bool:
    """Save where somebody wishes it, or the interval or the run's end does; whether that was done.

    Where there is no room, the run goes on without, and rank 0 says so; but a run that is to stop, or is at its end,
    would lose its steps: it raises InputError, alike on every rank.
    """
    last = step == config.optimization.steps
    interval = config.checkpoints.interval
    if wish is Wish.NONE and not last and (interval is None or step % interval):
        return False

    progress.doing("saving")
    sync_logs()

    def pieces() -> Iterator[Piece]:
        for piece in engine.slices():
            progress.moved()
            averaged = ema.read(piece) if ema else {}
            yield piece.name, piece.start, piece.stop, engine.read(piece) | averaged

    keep = config.checkpoints.keep_last_n
    try:
        save(folder.checkpoints, step, engine.shapes(), pieces(), gathering, keep)
    except NoRoom as error:
        steps = complete_steps(folder.checkpoints)
        before = (
            f"the newest checkpoint is that of step {steps[-1]}" if steps else "there is no checkpoint yet"
        )
        lacking = f"{error}: step {step} is not saved, {before}; make room there"
        if last or wish >= Wish.COME_BACK:
            raise InputError(f"{lacking}, and start the same command again") from error
        if gathering.world.is_main:
            again = f"after step {step - step % interval + interval}" if interval else "at its end"
            print(f"{lacking}: the run goes on and tries again {again}", flush=True)
        return False
    return True


def _say(line: str) -> None:
    if line:
        print(line, flush=True)
