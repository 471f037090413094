"""A job of many units that any number of workers do together, and that survives the death of each of them.

Under a folder of a storage: `job.json` says what is done, `units/000012.json` that a unit is complete, `claims/`
who is at what, `result.json` that all is. Everything else in a unit's result is the caller's.
"""

from __future__ import annotations

import errno
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from types import MappingProxyType
from typing import Any

from shards.errors import InputError
from shards.prepare.work.shift import Result, Shift, Task
from shards.prepare.work.workers import Worker
from shards.storage import Storage
from shards.storage.claims import LEASE_S, Claims
from shards.stream import stream

_FORMAT = 1
_LAST = "finish"  # the claim of the last step
_SHOWN = 200  # characters of a value in a message
_REOPENING_S = 30.0  # that workers wait for the first one to have units done again
_LOOK_S = 0.2

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class Job:
    """Work in `units` numbered pieces under `folder` of `storage`, for the input that `identity` describes.

    Raises InputError where the folder holds a job of another identity or another number of units: `identity`
    names all that the results depend on, and `cures` says for some of its keys what to do where they differ. A
    worker that gives no sign of life for `lease` seconds counts as dead.
    """

    def __init__(
        self,
        storage: Storage,
        folder: str,
        units: int,
        identity: Mapping[str, Any],
        lease: float = LEASE_S,
        cures: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.storage = storage
        self.folder = folder
        self.units = units
        self.lease = lease
        self._claims, self._units = f"{folder}/claims", f"{folder}/units"
        self._result = f"{folder}/result.json"
        described = {"format": _FORMAT, "units": units, "identity": dict(identity)}
        data = json.dumps(described, indent=1, ensure_ascii=False).encode()
        with refusals(storage):
            path = f"{folder}/job.json"
            # Looked for first: a job that is done may be in a place that nobody may write any more.
            existed = storage.stat(path) is not None or not storage.create(path, data)
        if existed:
            check_same(storage, folder, units, json.loads(data)["identity"], cures)

    def run(
        self,
        worker: Worker,
        do: Callable[[int], Result],
        finish: Callable[[list[Result]], Result],
        on_progress: Callable[[int, int], None],
        describe: Callable[[int], str] | None = None,
        *,
        careful: Callable[[int], Result] | None = None,
        settle: Callable[[int, Result, Result], None] | None = None,
    ) -> Result:
        """Do units until all are done, here and by the other workers; give the job's result.

        `do(unit)` puts the unit's files in place and returns what JSON can hold; with that the unit is complete.
        It may be called twice for a unit, also at the same time elsewhere, and has to write the same bytes, or to
        files of its own: the first result that is recorded counts, and `settle(unit, made, recorded)` puts that
        one's files in place. `careful(unit)` is called instead of `do` for a unit at which a worker died.
        `finish(results)`, in the order of units, makes the job's result out of them: the same holds for it.
        A job with a result returns it at once. `on_progress(done, units)` counts the units of all workers.
        `describe(unit)` says in messages what is in a unit.

        An error of `do` or `finish` ends this worker. Raises InputError for a full or forbidden storage, and
        for units that killed every worker that tried them, once all others are done. SIGTERM ends the process
        with its claims released.
        """
        units = [self._unit(unit, do, careful or do, settle or _keep, describe) for unit in range(self.units)]
        last = Task(_LAST, self._result, lambda: "the last step", lambda deaths: self._conclude(finish))

        def on_done(done: int) -> None:
            on_progress(done, self.units)

        with refusals(self.storage), _sigterm_raises():
            if self.result() is None:
                with Claims(self.storage, self._claims, self.lease) as claims:
                    while self.result() is None:
                        shift = Shift(self.storage, self._units, self._result, claims, worker, on_done)
                        with suppress(_Reopened):
                            shift.do_units(units)
                            shift.do_rest([last])
            elif self.storage.stat(f"{self._claims}/{_LAST}"):
                self.storage.remove(f"{self._claims}/{_LAST}")  # of one killed at the very end
            on_progress(self.units, self.units)
            result = self.result()
        assert result is not None
        return result

    def result(self) -> Result | None:
        """What `finish` returned, None where the job is not done."""
        return _read_if_there(self.storage, self._result)

    def reopen(self, stale: Callable[[int, Result], bool], worker: Worker, whole: bool = True) -> int:
        """Before `run`: forget the units whose result is `stale(unit, result)`, to have them done again; how many.

        Worker 0 forgets them, and, where what the last step makes is not `whole`, that it was done. The others
        wait a while where the job counts as done and has stale units, to take part.
        """
        with refusals(self.storage):
            done = self.storage.stat(self._result) is not None
            if worker.index and not done:
                return 0
            found = recorded(self.storage, self.folder, self.units)
            old = [unit for unit, result in found.items() if stale(unit, result)]
            absent = self.units - len(found) if done else 0  # of a worker that was killed in here
            if worker.index:
                until = time.monotonic() + _REOPENING_S
                while old and self.storage.stat(self._result) and time.monotonic() < until:
                    time.sleep(_LOOK_S)
                return 0
            for unit in old:
                self.storage.remove(_unit_path(self.folder, unit))
            # Last: while it is there nobody ends the job with what is being forgotten.
            if old or absent or not whole:
                self.storage.remove(self._result)
            return len(old)

    def _unit(
        self,
        unit: int,
        do: Callable[[int], Result],
        careful: Callable[[int], Result],
        settle: Callable[[int, Result, Result], None],
        describe: Callable[[int], str] | None,
    ) -> Task:
        def label() -> str:
            return f"unit {unit}" + (f" ({describe(unit)})" if describe else "")

        return Task(
            f"{unit:06d}",
            _unit_path(self.folder, unit),
            label,
            lambda deaths: careful(unit) if deaths else do(unit),
            lambda made, recorded: settle(unit, made, recorded),
        )

    def _conclude(self, finish: Callable[[list[Result]], Result]) -> Result:
        """The last step, and away with the notes of workers that were killed."""
        before = self.storage.list(self._units)
        names = (_unit_path(self.folder, unit) for unit in range(self.units))
        # Many at a time: each is a request where the storage is an object store.
        read = partial(_read_if_there, self.storage)
        with stream(names, read, depth=64, name="units", threads=16) as results:
            found = [result for result in results if result is not None]
        if len(found) < self.units:
            raise _Reopened
        result = finish(found)
        if self.storage.list(self._units) != before:  # worker 0 forgot some meanwhile
            raise _Reopened
        for entry in self.storage.list(self._claims):
            if entry.path != f"{self._claims}/{_LAST}":
                self.storage.remove(entry.path)
        # Not beside `job.json`: there they may be of a worker that is just starting.
        for folder in (self._claims, self._units):
            self.storage.sweep(folder)
        return result


def recorded(storage: Storage, folder: str, units: int) -> dict[int, Result]:
    """Results of the units that are complete in the job under `folder`."""
    names = {_unit_path(folder, unit): unit for unit in range(units)}
    paths = [entry.path for entry in storage.list(f"{folder}/units") if entry.path in names]
    with stream(paths, partial(_read_if_there, storage), depth=64, name="units", threads=16) as results:
        return {
            names[path]: result for path, result in zip(paths, results, strict=True) if result is not None
        }


def check_same(
    storage: Storage,
    folder: str,
    units: int,
    identity: Mapping[str, Any],
    cures: Mapping[str, str] = MappingProxyType({}),
    partly: bool = False,
) -> None:
    """Raise InputError where the job under `folder` is of another identity; `partly`: only the keys given count.

    `cures` as for `Job`.
    """
    path = f"{folder}/job.json"
    then = _read(storage, path)
    if then.get("format") != _FORMAT or not isinstance(then.get("identity"), dict):
        raise InputError(f"{storage.name}/{path} is not of this version: remove {folder} to begin anew")
    was = {**then["identity"], "units": then.get("units")}
    given = {**identity, "units": units}
    for key in (*given, *([] if partly else was)):
        if key not in was or key not in given or was[key] != given[key]:
            cure = cures.get(key, "give it as it was, or write to another place")
            raise InputError(
                f"{storage.name}/{path}: {key} was {_shown(was, key)} when this work began and is "
                f"{_shown(given, key)} now: {cure}"
            )


def _unit_path(folder: str, unit: int) -> str:
    return f"{folder}/units/{unit:06d}.json"


def _read_if_there(storage: Storage, path: str) -> Result | None:
    try:
        return _read(storage, path)
    except FileNotFoundError:
        return None


def _read(storage: Storage, path: str) -> Result:
    data = storage.read(path)
    try:
        return dict(json.loads(data))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{storage.name}/{path} is damaged ({error}): remove it and run the same command again"
        ) from error


class _Reopened(Exception):
    """Worker 0 forgot units that this one took for done."""


def _keep(unit: int, made: Result, recorded: Result) -> None:
    """Files that are in place need no settling."""


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "not there"
    text = json.dumps(values[key], ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


@contextmanager
def refusals(storage: Storage) -> Iterator[None]:
    """Say what to do where the storage is full or forbidden."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL | _FORBIDDEN:
            raise
        what = f"{error.strerror}: {error.filename}" if error.filename else error.strerror
        cure = "make room" if error.errno in _FULL else "see to the permissions"
        raise InputError(
            f"{storage.name}: {what}; what is done is kept: {cure} and run the same command again"
        ) from error


@contextmanager
def _sigterm_raises() -> Iterator[None]:
    """Let SIGTERM end the process through the stack, so that claims are released; only where nobody handles it."""
    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
    ):
        yield
        return
    signal.signal(signal.SIGTERM, _exit)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _exit(signum: int, frame: object) -> None:
    sys.exit(128 + signum)
