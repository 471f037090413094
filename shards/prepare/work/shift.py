"""What one worker does in a job: units of its own part, then what others left, then waiting for the rest."""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, NoReturn

from shards.errors import InputError
from shards.prepare.work.workers import Worker
from shards.storage import Storage
from shards.storage.claims import Claims, Held

Result = dict[str, Any]

WARN_DEATHS = 3
MOST_DEATHS = 5
_LISTING_SHARE = 0.05  # of the time, at most, for listing what all have done
_LISTING_S = 5.0  # between two listings, at least
_LOOKS = 32  # tasks of others looked at in a round of waiting
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 1.0  # between two rounds
_PAUSE_PER_WORKER_S = 0.015  # a thousand workers look every 15 s, which a storage can bear
_PATIENCE_S = 30.0  # until it is said for whom this worker waits, then twice as long
_NAMED = 3


class Task(NamedTuple):
    """A unit, or the last step: name of its claim, file that says it is done, what to call it, the work.

    `work(deaths)` is told how many workers died at it. The first result to be recorded is the one that counts:
    `settle(made, recorded)` is called after each `work`, with the same twice where it was this worker's.
    """

    name: str
    path: str
    label: Callable[[], str]
    work: Callable[[int], Result]
    settle: Callable[[Result, Result], None] = lambda made, recorded: None


class Shift:
    """One worker's part in a job: `tasks` done by all workers together until `result` is there.

    `claims` are open. `on_done(count)` is told how many of the tasks under the folder `units` are done by all.
    """

    def __init__(
        self,
        storage: Storage,
        units: str,
        result: str,
        claims: Claims,
        worker: Worker,
        on_done: Callable[[int], None],
    ) -> None:
        self._storage = storage
        self._units = units
        self._result = result
        self._claims = claims
        self._worker = worker
        self._on_done = on_done
        self._done: set[str] = set()
        self._list_next = 0.0

    def do_units(self, tasks: list[Task]) -> None:
        """Return once every task is done, by whomever, or the job has its result. Raises as `do_rest`."""
        self._list_if_due()
        for index in order(len(tasks), self._worker):
            task = tasks[index]
            if task.path in self._done:
                continue
            # What somebody holds, dead or alive, waits until all is done that nobody has tried: a unit that kills
            # its workers cannot keep them from the others.
            if self._is_done(task) or (self._claims.take(task.name) and self._do(task, 0)):
                self._note(task)
            self._list_if_due()
        self.do_rest([task for task in tasks if task.path not in self._done])

    def do_rest(self, tasks: list[Task]) -> None:
        """Do what turns out to be free among `tasks` and wait for those that others do.

        Raises InputError once none is left but such as killed everyone who tried them.
        """
        waiting = _Waiting(max(_LONGEST_PAUSE_S, self._worker.count * _PAUSE_PER_WORKER_S))
        refused: dict[str, str] = {}
        while tasks and self._storage.stat(self._result) is None:
            random.shuffle(tasks)
            waiting.held, now, ended = {}, self._storage.clock(), set()
            for task in tasks[:_LOOKS]:
                done = self._is_done(task)
                if not done and (deaths := self._claim(task, now, waiting.held, refused)) is not None:
                    done = self._do(task, deaths)
                if done:
                    self._note(task)
                    refused.pop(task.name, None)
                    ended.add(task.name)
            tasks = [task for task in tasks if task.name not in ended]
            if tasks and len(refused) == len(tasks):
                raise InputError(f"{self._storage.name}: " + "; ".join(refused.values()))
            if ended:
                waiting.begin()
            elif tasks:
                waiting.pause()

    def _claim(self, task: Task, now: float, held: dict[str, Held], refused: dict[str, str]) -> int | None:
        """Claim a task that is free or whose holder died: how many died at it; None where it cannot be had."""
        refused.pop(task.name, None)  # another may have taken it over since
        found = self._claims.look(task.name, now)
        if found is None:
            return 0 if self._claims.take(task.name) else None
        if not found.stale:
            held[task.label()] = found
            return None
        if (deaths := self._claims.recent_deaths(found)) >= MOST_DEATHS:
            refused[task.name] = (
                f"{task.label()} is not tried again: {deaths} workers died at it, the last was {found.holder}. "
                "See whether a file in it is bad or memory is short, then start the job again"
            )
            return None
        if not self._claims.take_over(task.name, found):
            return None
        if len(found.deaths) >= WARN_DEATHS:
            _say(f"WARNING: {task.label()}: {len(found.deaths)} workers died at it so far; trying it again")
        return len(found.deaths)

    def _do(self, task: Task, deaths: int) -> bool:
        """Do a task that is claimed, unless it was done in the moment before that."""
        try:
            if not self._is_done(task):
                made = task.work(deaths)
                # Claims do not keep a worker that stood still from coming back: only the first one records.
                mine = self._storage.create(task.path, json.dumps(made, ensure_ascii=False).encode())
                task.settle(made, made if mine else dict(json.loads(self._storage.read(task.path))))
        except Exception as error:
            # Another took it over meanwhile and, being done, may have cleared away what this one was writing.
            if not self._is_done(task):
                raise
            _say(f"{task.label()}: another worker did it while this one failed: {error}")
        finally:
            self._claims.release(task.name)
        return True

    def _is_done(self, task: Task) -> bool:
        return self._storage.stat(task.path) is not None

    def _note(self, task: Task) -> None:
        if task.path != self._result:
            self._done.add(task.path)
            self._on_done(len(self._done))

    def _list_if_due(self) -> None:
        """See what the others have done; seldom, since a job may have very many units."""
        began = time.monotonic()
        if began < self._list_next:
            return
        self._done |= {entry.path for entry in self._storage.list(self._units)}
        self._on_done(len(self._done))
        now = time.monotonic()
        self._list_next = now + max(_LISTING_S, (now - began) / _LISTING_SHARE)


def order(tasks: int, worker: Worker) -> Iterator[int]:
    """Every task once: the worker's own part, then the others' from their ends, where they come last."""
    for step in range(worker.count):
        part = (worker.index + step) % worker.count
        first, end = (tasks * bound // worker.count for bound in (part, part + 1))
        yield from range(first, end) if step == 0 else reversed(range(first, end))


def abandon(text: str) -> NoReturn:
    """Say why, and end this process at once with its claims held: others take over as from one that died.

    For a call that does not come back: its thread would keep the process from ending in any other way.
    """
    _say(text)
    os._exit(1)


class _Waiting:
    """Pauses between looks at what others do, longer and longer, and a line at times that says who they are."""

    def __init__(self, longest: float) -> None:
        self.held: dict[str, Held] = {}  # by label of the task
        self._longest = longest
        self.begin()

    def begin(self) -> None:
        """Count the time from now."""
        self._pause = _FIRST_PAUSE_S
        self._since = time.monotonic()
        self._patience = _PATIENCE_S

    def pause(self) -> None:
        """Sleep."""
        # Not all at once, nor in step.
        time.sleep(self._pause * random.uniform(0.5, 1.0))
        self._pause = min(2 * self._pause, self._longest)
        waited = time.monotonic() - self._since
        if waited < self._patience or not self.held:
            return
        self._patience *= 2
        named = [f"{label}, with {found.holder}" for label, found in list(self.held.items())[:_NAMED]]
        more = f", and {len(self.held) - _NAMED} more" if len(self.held) > _NAMED else ""
        _say(f"waiting for {waited:.0f} s for {'; '.join(named)}{more}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
