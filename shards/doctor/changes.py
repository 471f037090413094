"""How a repaired manifest differs from the one before: dropped, added and corrected samples, in words."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from shards.counted import counted
from shards.dataset.left_out import LeftOut
from shards.doctor.checkup import STRAY, Checkup
from shards.doctor.finding import KINDS
from shards.doctor.survey import REASONS, Candidates

# Of these the shard has no sample to be passed over: nothing there, or one that another row trains.
_NOT_LISTED = ("row", "cut", "unreadable", "key")
_CORRECTED = ("stale", "place", "shape", "rate", "id")


class Changes:
    """Collected shard by shard, in the order of the shards."""

    def __init__(self) -> None:
        self.left_out: list[LeftOut] = []  # samples of the shards that the manifest shall not get again
        self._lines: list[str] = []
        self._added: Counter[str] = Counter()
        self._corrected: dict[str, Counter[str]] = {}

    def lines(self) -> list[str]:
        """One for each sample dropped, and for each shard that has samples added or rows corrected."""
        added = [
            f"added {counted(count, 'sample')} of {shard}" for shard, count in self._added.items() if count
        ]
        corrected = [
            f"corrected {counted(max(kinds.values()), 'row')} of {shard}: {', '.join(kinds)}"
            for shard, kinds in self._corrected.items()
        ]
        return [*self._lines, *corrected, *added]

    def dropped(self, shard: str, key: str, reason: str) -> None:
        """A row goes."""
        self._lines.append(f"dropped {key!r} of {shard}: {reason}")

    def checkup(self, found: Checkup) -> None:
        """What the checks of one shard make of its rows and samples."""
        for broken in found.broken:
            reason = f"{KINDS[broken.kind].meaning} ({broken.detail})"
            if broken.row != STRAY:
                self.dropped(found.shard, broken.key, reason)
            else:
                self._lines.append(f"left out {broken.key!r} of {found.shard}: {reason}")
            if broken.kind not in _NOT_LISTED:
                self._leave_out(found.shard, broken.key, broken.checksum, broken.kind)
        corrected = Counter(problem.kind for problem in found.problems if problem.kind in _CORRECTED)
        if corrected:
            self._corrected[found.shard] = corrected
        strays = sum(whole.number == STRAY for whole in found.whole)
        if strays:
            self._added[found.shard] += strays

    def survey(self, samples: Candidates, drop: npt.NDArray[np.int16]) -> None:
        """What the comparison of all samples drops."""
        table = samples.table
        for row in np.flatnonzero(drop >= 0).tolist():
            shard, key, kind = table.shards[table.shard[row]], table.keys[row], REASONS[drop[row]]
            if samples.numbers[row] == STRAY:
                self._added[shard] -= 1
                self._lines.append(f"left out {key!r} of {shard}: {KINDS[kind].meaning}")
            else:
                self.dropped(shard, key, KINDS[kind].meaning)
            self._leave_out(shard, key, int(table.checksum[row]), kind)

    def _leave_out(self, shard: str, key: str, checksum: int | None, kind: str) -> None:
        digits = "" if checksum is None else f"{checksum:016x}"
        self.left_out.append(LeftOut(shard, key, digits, KINDS[kind].meaning))
