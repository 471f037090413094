"""Exports that a run makes itself: with its checkpoints, where that is asked for, and at its end."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from dist_trainer.checkpoints.kept import is_of, name_of
from dist_trainer.config import RunConfig
from dist_trainer.dist import Gathering
from dist_trainer.exporting.export import Format, Wanted, export, is_exported
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import Requests, ToldToStop, Wish, heeding
from dist_trainer.watch import progress
from shards.errors import InputError

EXPORT_S = 12 * 3600.0  # tens of GB on a slow disk; the watch sees an export that stands still


def export_saved(
    config: RunConfig, folder: RunFolder, step: int, requests: Requests, gathering: Gathering
) -> Wish:
    """Export the checkpoint just saved, from rank 0, where checkpoints.export asks for it; all ranks come together.

    An export that fails, for lack of room perhaps, is said and the run goes on: the checkpoint holds all of it. So is
    one that a stop cuts short, which is returned, alike on every rank. The last step is left to the end of the run.
    """
    formats = _asked_for(config, step)
    if not formats:
        return Wish.NONE
    progress.doing("exporting")
    wish = _attempt(formats, folder, step, requests) if gathering.world.is_main else Wish.NONE
    return after_export(wish, gathering)


def export_resumed(
    config: RunConfig, folder: RunFolder, step: int, requests: Requests, gathering: Gathering
) -> Wish:
    """Export the checkpoint that a run goes on from as `export_saved` does, where that has not come to it: what is
    saved because the run is to stop and come back is not exported then, as time is short.

    Tried once: where an export takes longer than a job has, the run would never come to its next step.
    """
    formats = _asked_for(config, step)
    if not step or not formats:
        return Wish.NONE
    progress.doing("exporting")
    wish = Wish.NONE
    if gathering.world.is_main and not is_exported(config, folder, step, formats):
        tried = folder.exports / f".{name_of(step)}.tried"
        if is_of(tried, folder.checkpoints / name_of(step)):
            print(
                f"export of step {step} was not done in the time of an earlier start; the run goes on without, and "
                f"{_by_hand(folder, step)}",
                flush=True,
            )
        else:
            wish = _attempt(formats, folder, step, requests, tried)
    return after_export(wish, gathering)


def _asked_for(config: RunConfig, step: int) -> Format | None:
    """What checkpoints.export asks for of a step before the last one."""
    formats = config.checkpoints.export
    return None if formats == "none" or step >= config.optimization.steps else formats


def _attempt(
    formats: Format, folder: RunFolder, step: int, requests: Requests, tried: Path | None = None
) -> Wish:
    """Export a checkpoint, or say why not; what was asked for that cut it short.

    `tried`: a file that is there while it is made, and stays where that was cut short, by a kill too.
    """
    by_hand = _by_hand(folder, step)
    try:
        if tried:
            tried.parent.mkdir(parents=True, exist_ok=True)
            tried.touch()
        export(folder.root, step, Wanted(formats), heeding(requests))
    except ToldToStop as told:
        what_then = by_hand if tried else later(told.wish, by_hand)
        print(f"export of step {step} is left unfinished: {told}; {what_then}", flush=True)
        return told.wish
    except (InputError, OSError, SafetensorError) as error:
        print(f"export of step {step} failed: {error}; the run goes on, and {by_hand}", flush=True)
    if tried:
        with suppress(OSError):
            tried.unlink(missing_ok=True)
    return Wish.NONE


def _by_hand(folder: RunFolder, step: int) -> str:
    return f"`ltx-train export {folder.root} --step {step}` does it again while its checkpoint is there"


def export_end(config: RunConfig, folder: RunFolder, requests: Requests) -> Path:
    """Export the run's last checkpoint: what is usual, and what checkpoints.export asks for beside it.

    Raises ToldToStop when a stop is asked for that does not wait for it.
    """
    asked = config.checkpoints.export
    formats: Format | None = "both" if asked in ("comfyui", "both") else None
    return export(folder.root, None, Wanted(formats), heeding(requests))


def later(wish: Wish, by_hand: str) -> str:
    """What becomes of an export that `wish` has cut short."""
    return "the run makes it when it comes back" if wish is Wish.COME_BACK else by_hand


def after_export(wish: Wish, gathering: Gathering) -> Wish:
    """What rank 0 was asked in its export, on every rank; the others wait for it."""
    return Wish[gathering.share("export", wish.name, max(EXPORT_S, gathering.timeout_s))]
