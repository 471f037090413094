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
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from shards.errors import InputError
from shards.prepare.work.shift import Shift, Task
from shards.prepare.work.workers import Worker
from shards.storage import Storage
from shards.storage.claims import LEASE_S, Claims
from shards.stream import stream

_FORMAT = 1
_LAST = "finish"  # the claim of the last step
_SHOWN = 200  # characters of a value in a message

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}


class Job:
    """Work in `units` numbered pieces under `folder` of `storage`, for the input that `identity` describes.

    Raises InputError where the folder holds a job of another identity or another number of units: `identity`
    names all that the results depend on. `existed` says whether the job had begun already, by an earlier run or by
    another worker of this one. A worker that gives no sign of life for `lease` seconds counts as dead.
    """

    def __init__(
        self, storage: Storage, folder: str, units: int, identity: Mapping[str, Any], lease: float = LEASE_S
    ) -> None:
        self.storage = storage
        self.folder = folder
        self.units = units
        self.lease = lease
        self._claims, self._units = f"{folder}/claims", f"{folder}/units"
        described = {"format": _FORMAT, "units": units, "identity": dict(identity)}
        data = json.dumps(described, indent=1, ensure_ascii=False).encode()
        with _refusals(storage):
            path = f"{folder}/job.json"
            # Looked for first: a job that is done may be in a place that nobody may write any more.
            self.existed = storage.stat(path) is not None or not storage.create(path, data)
        if self.existed:
            self._check(json.loads(data))

    def run(
        self,
        worker: Worker,
        do: Callable[[int], dict[str, Any]],
        finish: Callable[[list[dict[str, Any]]], dict[str, Any]],
        on_progress: Callable[[int, int], None],
        describe: Callable[[int], str] | None = None,
    ) -> dict[str, Any]:
        """Do units until all are done, here and by the other workers; give the job's result.

        `do(unit)` puts the unit's files in place and returns what JSON can hold; with that the unit is complete.
        It may be called twice for a unit, also at the same time elsewhere, and has to write the same bytes.
        `finish(results)`, in the order of units, makes the job's result out of them: the same holds for it.
        A job with a result returns it at once. `on_progress(done, units)` counts the units of all workers.
        `describe(unit)` says in messages what is in a unit.

        An error of `do` or `finish` ends this worker. Raises InputError for a full or forbidden storage, and
        for units that killed every worker that tried them, once all others are done. SIGTERM ends the process
        with its claims released.
        """
        units = [self._unit(unit, do, describe) for unit in range(self.units)]
        last = Task(
            _LAST, f"{self.folder}/result.json", lambda: "the last step", lambda: self._conclude(finish)
        )
        with _refusals(self.storage), _sigterm_raises():
            if self.result() is None:
                with Claims(self.storage, self._claims, self.lease) as claims:
                    shift = Shift(
                        self.storage,
                        f"{self.folder}/units",
                        last.path,
                        claims,
                        worker,
                        lambda done: on_progress(done, self.units),
                    )
                    shift.do_units(units)
                    shift.do_rest([last])
            elif self.storage.stat(f"{self._claims}/{_LAST}"):
                self.storage.remove(f"{self._claims}/{_LAST}")  # of one killed at the very end
            on_progress(self.units, self.units)
            result = self.result()
        assert result is not None
        return result

    def result(self) -> dict[str, Any] | None:
        """What `finish` returned, None where the job is not done."""
        try:
            return self._read(f"{self.folder}/result.json")
        except FileNotFoundError:
            return None

    def _unit(
        self, unit: int, do: Callable[[int], dict[str, Any]], describe: Callable[[int], str] | None
    ) -> Task:
        def label() -> str:
            return f"unit {unit}" + (f" ({describe(unit)})" if describe else "")

        return Task(f"{unit:06d}", self._unit_path(unit), label, lambda: do(unit))

    def _unit_path(self, unit: int) -> str:
        return f"{self._units}/{unit:06d}.json"

    def _conclude(self, finish: Callable[[list[dict[str, Any]]], dict[str, Any]]) -> dict[str, Any]:
        """The last step, and away with the notes of workers that were killed."""
        names = (self._unit_path(unit) for unit in range(self.units))
        # Many at a time: each is a request where the storage is an object store.
        with stream(names, self._read, depth=64, name="units", threads=16) as results:
            result = finish(list(results))
        for entry in self.storage.list(self._claims):
            if entry.path != f"{self._claims}/{_LAST}":
                self.storage.remove(entry.path)
        # Not beside `job.json`: there they may be of a worker that is just starting.
        for folder in (self._claims, self._units):
            self.storage.sweep(folder)
        return result

    def _read(self, path: str) -> dict[str, Any]:
        data = self.storage.read(path)
        try:
            return dict(json.loads(data))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{self.storage.name}/{path} is damaged ({error}): remove it and run the same command again"
            ) from error

    def _check(self, now: dict[str, Any]) -> None:
        """Compare with the job that is there."""
        path = f"{self.folder}/job.json"
        then = self._read(path)
        if then.get("format") != _FORMAT or not isinstance(then.get("identity"), dict):
            raise InputError(
                f"{self.storage.name}/{path} is not of this version: remove {self.folder} to begin anew"
            )
        was = {**then["identity"], "units": then.get("units")}
        given = {**now["identity"], "units": now["units"]}
        for key in (*given, *was):
            if key not in was or key not in given or was[key] != given[key]:
                raise InputError(
                    f"{self.storage.name}/{path}: {key} was {_shown(was, key)} when this work began and is "
                    f"{_shown(given, key)} now: give it as it was, or write to another place"
                )


def _shown(values: Mapping[str, Any], key: str) -> str:
    if key not in values:
        return "not there"
    text = json.dumps(values[key], ensure_ascii=False)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + "..."


@contextmanager
def _refusals(storage: Storage) -> Iterator[None]:
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
