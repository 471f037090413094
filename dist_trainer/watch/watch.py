"""The watch: threads in each rank that end a run which died or stands still, with one line that says who and where.

Each rank's heart beats in the ranks' store. Rank 0 reads all hearts, the others that of rank 0 and the verdict. Talk
with the store may block for ever (a frozen rank 0, a host without power), so one thread talks, and another, which
only looks at clocks and at what was heard, judges.
"""

from __future__ import annotations

import faulthandler
import itertools
import json
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch.distributed as torch_dist

from dist_trainer.dist import FAILED, PREFIX, Gathering
from dist_trainer.job import LOCAL
from dist_trainer.watch import progress
from dist_trainer.watch.beat import Beat, beats_of, behind, heard, places, without_beats
from dist_trainer.watch.ending import Ending
from dist_trainer.watch.standing import standing, write_stacks
from dist_trainer.watch.stillness import Stillness

_LONGEST_INTERVAL_S = 2.0
_AFTER_FAILURE_S = 15.0  # in which a rank ends by itself when another has failed
# Once a rank is told to end: a launcher that has lost one tells the others, and kills them soon (Slurm after 30 s).
_SILENT_ENDING_S = 10.0
_IO_S = 5.0  # for a line, a file, an answer of the store, while ending
_VERDICT = "verdict"


class Watch:
    """Watches this rank, rank 0 and, on rank 0, all ranks; ends the process with exit code 1 when the run cannot go on.

    `silent_s`: a rank not heard of for so long is gone; once ranks are told to end (SIGTERM), 10 s are enough.
    `hang_s`: a run in which no rank gives a sign of life for so long hangs. All count only time in which this process
    itself was awake. Stacks go to `stacks`/<job>_<rank>.txt, the cause to `stacks`/<job>_cause.txt, which also settles
    which rank says it.
    """

    def __init__(
        self, gathering: Gathering, silent_s: float, hang_s: float, stacks: Path, job: str = LOCAL
    ) -> None:
        self._gathering, self._world = gathering, gathering.world
        self._silent_s, self._hang_s = silent_s, hang_s
        self._stacks, self._job = stacks, job
        self.interval = min(_LONGEST_INTERVAL_S, silent_s / 6, hang_s / 6)
        self._talked, self._judged = threading.Event(), threading.Event()
        self._threads: list[threading.Thread] = []
        self._still = Stillness(longest_s=3 * self.interval)
        self._own = Beat()
        self._signature = self._changes = 0
        self._beats: dict[int, Beat] = {}
        self._hosts: dict[int, str] = {}
        self._verdict = ""
        self._failed: int | None = None
        self._lost = False
        self._main_ends_s: float | None = None
        self._ending: Ending | None = None

    def start(self) -> None:
        """Begin to watch; from the main thread."""
        self._ending = Ending()
        # So that the first beat has a place.
        self._look()
        if self._world.is_main:
            # The cause of an earlier job of this name.
            within(_IO_S, lambda: self._cause_file.unlink(missing_ok=True))
        acts = [self._judge] if self._world.size == 1 else [self._talk, self._judge]
        for act in acts:
            self._threads.append(threading.Thread(target=act, name="watch", daemon=True))
            self._threads[-1].start()

    def leave(self, limit_s: float) -> None:
        """All work is done, ranks may leave; only that this process ends within `limit_s` seconds is watched."""
        self._main_ends_s = limit_s
        self._talked.set()

    def stop(self) -> None:
        """End the watch."""
        self._talked.set()
        self._judged.set()
        for thread in self._threads:
            thread.join(1.0)
        if self._ending:
            self._ending.close()
        faulthandler.cancel_dump_traceback_later()

    def main_ends(self, limit_s: float) -> None:
        """The main thread fails and ends the process by itself; past `limit_s` seconds the watch does."""
        self._main_ends_s = limit_s

    def claim(self, cause: str) -> bool:
        """Whether this process is the one that says why the run ends: the first that writes the cause's file.

        Where the file system does not answer, rank 0 is, or rank 1 where rank 0 is gone.
        """

        def create() -> bool:
            self._stacks.mkdir(parents=True, exist_ok=True)
            try:
                with self._cause_file.open("x", encoding="utf-8") as file:
                    file.write(f"{cause}\n")
            except FileExistsError:
                return False
            return True

        claimed = within(_IO_S, create)
        fallback = 1 if self._lost or not self._world.is_main else 0
        return self._world.rank == fallback if claimed is None else claimed

    def gone(self) -> str:
        """Ranks whose hearts stopped, in words, after a look of some beats; for the main thread, when it fails."""
        if self._world.size == 1 or not self._threads:
            return ""
        try:
            store = self._gathering.store(PREFIX)
            silent = without_beats(store, self._world.size, self._world.rank, 3 * self.interval)
            named = self._gathering.describe(list(silent))
        except RuntimeError:
            return ""
        are = "is" if len(silent) == 1 else "are"
        return f"{named} {are} gone, last heard of in {places(silent)}" if silent else ""

    def behind(self) -> str:
        """Ranks that have come less far than the others, in words; for the main thread, after `gone`."""
        if self._world.size == 1 or not self._threads:
            return ""
        try:
            late = behind(beats_of(self._gathering.store(PREFIX), self._world.size))
            return f"{self._gathering.describe(list(late))} in {places(late)}" if late else ""
        except RuntimeError:
            return ""

    def pronounce(self, cause: str, error: str) -> None:
        """Let every rank write its stacks and end; for the main thread, whose `error` shows that a rank is gone."""
        with suppress(RuntimeError):
            self._gathering.store(PREFIX).set(_VERDICT, cause)
        self.claim(cause)
        self.write_stacks(f"{cause}\n{error}")
        self.give_time()

    def give_time(self) -> None:
        """Let the other ranks find out and write their stacks: a launcher ends everybody with the first."""
        time.sleep(3 * self.interval if self._world.size > 1 else 0.0)

    def write_stacks(self, cause: str) -> None:
        """Write where all threads of this process stand to its file, or to its log where that takes too long."""
        path = self._stacks / f"{self._job}_{self._world.rank}.txt"
        if within(_IO_S, lambda: write_stacks(path, cause)) is None:
            faulthandler.dump_traceback(file=2, all_threads=True)

    def lost_main(self) -> str:
        """That rank 0 is gone, in words."""
        if self._world.is_main:
            return f"{self._named([0])} gets no answer from its launcher's store"
        last = places({0: self._beats[0]}) if 0 in self._beats else "the start"
        return f"{self._named([0])} is gone, its store no longer answers; last heard of in {last}"

    @property
    def heard_of_failure(self) -> bool:
        """Whether it is known here that another rank has failed, and so has said why."""
        return self._failed is not None

    @property
    def _cause_file(self) -> Path:
        return self._stacks / f"{self._job}_cause.txt"

    # The thread that talks.

    def _talk(self) -> None:
        with suppress(RuntimeError):
            # A client of its own: those of one client wait for each other.
            store = self._gathering.twin()
            complete = False
            for told in itertools.count():
                if self._talked.is_set():
                    return
                store.set(f"beat/{self._world.rank}", json.dumps(self._own._replace(told=told)))
                if self._world.is_main and not told:
                    store.set(_VERDICT, "")
                complete = complete or store.check([f"beat/{rank}" for rank in self._watched] + [_VERDICT])
                if complete:
                    self._listen(store)
                self._talked.wait(self.interval)
        self._lost = not self._talked.is_set()

    @property
    def _watched(self) -> Sequence[int]:
        return range(1, self._world.size) if self._world.is_main else (0,)

    def _listen(self, store: torch_dist.Store) -> None:
        if not self._hosts:
            ranks = sorted({0, *self._watched})
            hosts = store.multi_get([f"host/{rank}" for rank in ranks])
            self._hosts = {rank: host.decode() for rank, host in zip(ranks, hosts, strict=True)}
        *beats, verdict = store.multi_get([f"beat/{rank}" for rank in self._watched] + [_VERDICT])
        self._verdict = verdict.decode()
        if self._failed is None and store.check([FAILED]):
            self._failed = int(store.get(FAILED).split()[0])
        self._beats = {rank: heard(text) for rank, text in zip(self._watched, beats, strict=True)}

    # The thread that judges.

    def _judge(self) -> None:
        while not self._judged.wait(self.interval):
            if self._world.size > 1:
                # Where a call of C keeps the interpreter for itself, only this one can tell where; to the rank's log.
                faulthandler.dump_traceback_later(self._silence_s, file=2)
            self._look()
            self._still.tick()
            main_ends = self._main_ends_s is not None
            if self._talked.is_set():
                self._hurry()
            elif self._verdict and not main_ends:
                self._end(f"rank {self._world.rank} ends with the run", "")
            elif self._lost and not self.heard_of_failure and not main_ends:
                self._speak(self.lost_main(), [0])
            elif silent := self._silent():
                self._speak(self._silence(silent), silent)
            elif main_ends or self.heard_of_failure:
                self._hurry()
            elif self._still.seconds("run", self._signs()) >= self._hang_s:
                self._speak(*self._hang())

    def _look(self) -> None:
        """See where the main thread stands."""
        at = standing()
        self._changes += at.signature != self._signature
        self._signature = at.signature
        place = progress.now()
        moves = place.moves + self._changes
        self._own = self._own._replace(
            moves=moves,
            marks=place.marks,
            place=str(place),
            where=at.where,
            waits=at.waits,
            ending=self._ending is not None and self._ending.told(),
        )

    def _signs(self) -> Any:
        """What changes while the run moves. Only rank 0 knows it; the others never call a run hung."""
        if not self._world.is_main:
            return time.monotonic()
        return (self._own.moves, *(beat.moves for beat in self._beats.values()))

    @property
    def _silence_s(self) -> float:
        ending = self._own.ending or any(beat.ending for beat in self._beats.values())
        return min(self._silent_s, _SILENT_ENDING_S) if ending else self._silent_s

    def _silent(self) -> list[int]:
        """Ranks whose hearts have not beaten for too long, with those that are about to be."""
        ages = {rank: self._still.seconds(rank, beat.told) for rank, beat in self._beats.items()}
        if not ages or max(ages.values()) < self._silence_s:
            return []
        return [rank for rank, age in ages.items() if age >= self._silence_s - 2 * self.interval]

    def _silence(self, ranks: Sequence[int]) -> str:
        beats = {rank: self._beats[rank] for rank in ranks}
        has = "has" if len(ranks) == 1 else "have"
        return (
            f"{self._named(ranks)} {has} not been heard of for {self._silence_s:g} s (dead, frozen or cut off), "
            f"last in {places(beats)}; stacks of the others: {self._stacks}"
        )

    def _hang(self) -> tuple[str, list[int]]:
        """Who holds the run up: of the ranks that do not wait for others, those with the fewest marks."""
        beats = {0: self._own, **self._beats}
        doing = {rank: beat for rank, beat in beats.items() if not beat.waits} or beats
        fewest = min(beat.marks for beat in doing.values())
        ranks = [rank for rank, beat in doing.items() if beat.marks == fewest]
        whole = len(ranks) == self._world.size > 1
        who = f"all {len(ranks)} ranks" if whole else self._named(ranks)
        stand = "stands" if len(ranks) == 1 else "stand"
        where = places({rank: beats[rank] for rank in ranks})
        return f"{who} {stand} still for {self._hang_s:g} s in {where}; stacks: {self._stacks}", ranks

    def _hurry(self) -> None:
        """A failure is told already; see that this process ends too."""
        limit = _AFTER_FAILURE_S if self._main_ends_s is None else self._main_ends_s
        if self._still.seconds("end", self._main_ends_s) < limit:
            return
        known = self._failed is not None and self._main_ends_s is None
        why = f"rank {self._failed} failed" if known else "it could not end by itself"
        self._end(f"rank {self._world.rank} ends: {why}", f"; stood in {places({0: self._own})}")

    def _speak(self, cause: str, ranks: Sequence[int]) -> None:
        """End the run for a cause, unless a rank is already explaining another."""
        if self._talked.is_set():
            return
        if self._world.size > 1 and not self._lost:
            first = within(_IO_S, lambda: self._gathering.twin().compare_set(FAILED, "", f"{ranks[0]} watch"))
            if first is not None and not first.endswith(b"watch"):
                self._failed = int(first)
                return
        if self.claim(cause):
            self._end(f"error: {cause}", "", cause, ranks)
        else:
            self._end(f"rank {self._world.rank} ends: {self._named(ranks[:1])} failed or is gone", "")

    def _end(self, line: str, more: str, verdict: str = "", without: Sequence[int] = ()) -> None:
        """Say a line, tell the others, write the stacks, let the others do so too, and end. Rank 0 ends last."""
        faulthandler.cancel_dump_traceback_later()
        within(_IO_S, lambda: os.write(2, f"{line}{more}\n".encode()))
        self.write_stacks(verdict or self._verdict or line)
        reachable = not self._lost and (self._world.is_main or 0 not in without)
        if self._world.size > 1 and reachable:
            within(3 * self.interval + _IO_S, lambda: self._take_leave(verdict, without))
        self.give_time()
        if self._world.is_main:
            time.sleep(self.interval)
        os._exit(1)

    def _take_leave(self, verdict: str, without: Sequence[int]) -> None:
        store = self._gathering.twin()
        if verdict:
            store.set(_VERDICT, verdict)
        store.set(f"ended/{self._world.rank}", "1")
        others = [f"ended/{rank}" for rank in range(self._world.size) if rank not in without]
        while self._world.is_main and not store.check(others):
            time.sleep(0.1)

    def _named(self, ranks: Sequence[int]) -> str:
        if self._world.size == 1:
            return self._gathering.describe(ranks)
        named = [f"rank {rank} ({self._hosts.get(rank, 'host unknown')})" for rank in ranks[:8]]
        return ", ".join(named) + (f" and {len(ranks) - 8} more" if len(ranks) > 8 else "")


def within(seconds: float, act: Callable[[], Any]) -> Any:
    """What `act` returns; None when it fails, or takes longer: a file system or a store may never answer."""
    found: list[Any] = []

    def run() -> None:
        with suppress(OSError, RuntimeError):
            found.append(act())

    thread = threading.Thread(target=run, name="watch", daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None
