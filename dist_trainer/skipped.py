"""What a run knows of its skipped steps: those whose loss or gradient norm was not finite, so that nothing was updated.

Every rank keeps the same count: it is made of what the ranks' one reduction of a step brings, and of the gradient norm,
which is of all ranks' gradients.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.dist import Gathering
from dist_trainer.logs import records
from dist_trainer.rundir import RunFolder
from shards.dataset.opened import Dataset
from shards.errors import InputError
from shards.plan import Step

_NAMED = 5
LOSS, NORM = "loss", "gradient norm"


@dataclass(frozen=True)
class Skipped:
    """A skipped step, and its `cause`: LOSS, with the samples whose loss was not finite; NORM, with all of the step."""

    step: int
    cause: str
    ids: list[int]
    keys: list[str]


class Skips:
    """Counts over the run's life: `total` skipped steps, and those one after the other up to the latest step."""

    def __init__(
        self,
        dataset: Dataset,
        limit: int,
        checkpoints: Path,
        total: int = 0,
        latest: Sequence[Skipped] = (),
    ) -> None:
        self.total = total
        self.latest = list(latest)
        self._dataset, self._limit, self._checkpoints = dataset, limit, checkpoints

    def settle(self, step: Step, rows: np.ndarray, losses: np.ndarray, norm: float) -> Skipped | None:
        """Enter a step: None where its update was made, which is where its gradient norm is finite.

        `rows` int64 [B]: the manifest rows that were trained; `losses` float64 [B]: their weighted losses, of which
        one that is not finite leaves no finite norm.
        """
        if math.isfinite(norm):
            self.latest = []
            return None
        wrong = ~np.isfinite(losses)
        found = rows[wrong] if wrong.any() else rows
        manifest = self._dataset.manifest
        skipped = Skipped(
            step=step.index + 1,
            cause=LOSS if wrong.any() else NORM,
            ids=manifest.ids[found].tolist(),
            keys=[str(key) for key in manifest.keys[found]],
        )
        self.total += 1
        self.latest.append(skipped)
        return skipped

    def check(self) -> None:
        """Raise InputError, alike on every rank, when more steps were skipped one after the other than may be."""
        if len(self.latest) > self._limit:
            raise InputError(self._refusal())

    def _refusal(self) -> str:
        first, last = self.latest[0].step, self.latest[-1].step
        which = f"step {last} was" if first == last else f"all steps from {first} to {last} were"
        samples = {
            key: id
            for skipped in self.latest
            if skipped.cause == LOSS
            for id, key in zip(skipped.ids, skipped.keys, strict=True)
        }
        named = ", ".join(f"{key} (id {id})" for key, id in list(samples.items())[:_NAMED])
        more = f" and {len(samples) - _NAMED} more" if len(samples) > _NAMED else ""
        found = (
            f"the loss of samples {named}{more}" if samples else "the gradient norm, but no sample's loss,"
        )
        root, saved = self._dataset.root, complete_steps(self._checkpoints)
        goes_on = (
            f"goes on from the last checkpoint, that of step {saved[-1]}"
            if saved
            else "begins at step 1, as there is no checkpoint yet (checkpoints.interval)"
        )
        return (
            f"health.max_skipped_steps: {self._limit}: {which} skipped: {found} was not finite; if "
            f"`ltx-shards doctor {root}` finds NaN or infinite numbers in samples, run it with --repair and train what "
            f"is left in another output_dir; else lower optimization.learning_rate and start again, which {goes_on}"
        )


def open_skips(dataset: Dataset, limit: int, folder: RunFolder, start: int, gathering: Gathering) -> Skips:
    """The count of a run that goes on after step `start`: rank 0 reads the log, the others hear of it."""
    known = [Skipped(**line) for line in records(folder.skipped, start)] if gathering.world.is_main else []
    own = {"total": len(known), "latest": [asdict(skipped) for skipped in _in_a_row(known, start)]}
    shared = json.loads(gathering.share("skipped steps", json.dumps(own)))
    latest = [Skipped(**line) for line in shared["latest"]]
    return Skips(dataset, limit, folder.checkpoints, shared["total"], latest)


def updates(folder: RunFolder, step: int, gathering: Gathering) -> int:
    """How many of a run's first `step` steps updated the weights, by rank 0's log."""
    skipped = len(records(folder.skipped, step)) if gathering.world.is_main else 0
    return step - int(gathering.share("number of skipped steps", str(skipped)))


def _in_a_row(skipped: Sequence[Skipped], until: int) -> list[Skipped]:
    """Those of the skipped steps, in their order, that come one after the other and end with `until`."""
    return [found for place, found in enumerate(skipped) if found.step == until - (len(skipped) - 1 - place)]
