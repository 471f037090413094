"""What a run knows of its damaged samples: which were replaced by which, how many there are, and when it is too many.

Every rank keeps the same ledger: it is made of what the ranks' one reduction of a step brings, and of a pure function.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from dist_trainer.dist import Gathering
from dist_trainer.feed.substitute import substitutes
from dist_trainer.logs import records
from dist_trainer.rundir import RunFolder
from shards.dataset.opened import Dataset
from shards.errors import DamagedSample, InputError
from shards.plan import Plan, Step

_NAMED = 5


@dataclass(frozen=True)
class Replaced:
    """A sample of a step that was damaged, and the one trained in its place.

    `also_damaged`: keys of samples that were tried before it and were damaged too. `wrong`: what was found in the
    damaged sample, None where another rank has read it.
    """

    step: int
    epoch: int
    id: int
    key: str
    shard: str
    wrong: str | None
    replacement_id: int
    replacement_key: str
    also_damaged: tuple[str, ...] = ()


class Ledger:
    """Counts over the run's life: `total` samples trained by another one, `damaged` distinct keys in order of sight."""

    def __init__(
        self, plan: Plan, dataset: Dataset, limit: int, total: int = 0, damaged: Iterable[str] = ()
    ) -> None:
        self.total = total
        self.damaged = dict.fromkeys(damaged)
        self._plan, self._dataset, self._limit = plan, dataset, limit
        self._told: set[int] = set()

    def tell(self, rank: int, found: Mapping[int, DamagedSample]) -> None:
        """Print what this rank found damaged, by manifest row, to stderr: each sample once."""
        for row, error in found.items():
            if row not in self._told:
                self._told.add(row)
                print(f"damaged, rank {rank}: {error}", file=sys.stderr, flush=True)

    def settle(self, step: Step, rows: np.ndarray, found: Mapping[int, DamagedSample]) -> list[Replaced]:
        """Enter a step in which the manifest rows `rows` int64 [B] were trained in place of `step.rows`.

        `found`: by row, what this rank itself found damaged. Raises InputError, alike on every rank, when the run
        has come across more damaged samples than it may.
        """
        entries = [self._entry(step, int(i), int(rows[i]), found) for i in np.flatnonzero(rows != step.rows)]
        self.total += len(entries)
        before = len(self.damaged)
        for entry in entries:
            self.damaged.update(dict.fromkeys((entry.key, *entry.also_damaged)))
        if len(self.damaged) > max(before, self._limit):
            raise InputError(self._refusal(step.index + 1))
        return entries

    def _entry(self, step: Step, position: int, trained: int, found: Mapping[int, DamagedSample]) -> Replaced:
        manifest, row, epoch = self._dataset.manifest, int(step.rows[position]), int(step.epochs[position])
        order = substitutes(manifest, self._plan.tokens, self._plan.seed, epoch, row).tolist()
        if trained not in order:
            raise RuntimeError(
                f"step {step.index + 1}: {manifest.keys[trained]!r} was trained in place of {manifest.keys[row]!r}, "
                "which it may not replace"
            )
        return Replaced(
            step=step.index + 1,
            epoch=epoch,
            id=int(manifest.ids[row]),
            key=str(manifest.keys[row]),
            shard=manifest.shards[manifest.shard[row]],
            wrong=_difference(found[row]) if row in found else None,
            replacement_id=int(manifest.ids[trained]),
            replacement_key=str(manifest.keys[trained]),
            also_damaged=tuple(str(manifest.keys[other]) for other in order[: order.index(trained)]),
        )

    def _refusal(self, step: int) -> str:
        keys, root = list(self.damaged), self._dataset.root
        more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
        return (
            f"data.max_damaged_samples: {self._limit}: with step {step} the run has met {len(keys)} damaged samples "
            f"({', '.join(keys[:_NAMED])}{more}); `ltx-shards doctor {root}` says whether the shards are damaged or "
            "the manifest is of other ones: put them back from a copy and start again, or run "
            f"`ltx-shards doctor {root} --repair` and train what is left in another output_dir, or raise the limit"
        )


def _difference(error: DamagedSample) -> str:
    return f"{error.what}: expected {error.expected}, found {error.found}"


def open_ledger(
    plan: Plan, dataset: Dataset, limit: int, folder: RunFolder, start: int, gathering: Gathering
) -> Ledger:
    """The ledger of a run that goes on after step `start`: rank 0 reads the log, the others hear of it."""
    known: dict[str, Any] = {"total": 0, "damaged": []}
    if gathering.world.is_main:
        lines = records(folder.replaced, start)
        keys = dict.fromkeys(key for line in lines for key in (line["key"], *line["also_damaged"]))
        known = {"total": len(lines), "damaged": list(keys)}
    known = json.loads(gathering.share("damaged samples", json.dumps(known)))
    return Ledger(plan, dataset, limit, known["total"], known["damaged"])
