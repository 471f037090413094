"""Items that may kill the process that touches them, found out in processes of their own."""

from __future__ import annotations

import ctypes
import hashlib
import signal
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

from shards.storage import Storage

T = TypeVar("T")
R = TypeVar("R")
_STILL, _DIED = "nothing came of it", "the process died while reading it"
_START_S = 60.0  # for a process to begin
_PR_SET_PDEATHSIG = 1


def deadly(touch: Callable[[T], object], items: Sequence[T], patience_s: float) -> dict[int, str]:
    """Numbers of the items at which `touch` kills its process or stands still, as `attempt` has them."""
    return attempt(partial(_touch, touch), items, patience_s)[1]


def attempt(
    touch: Callable[[T], R], items: Sequence[T], patience_s: float
) -> tuple[dict[int, R], dict[int, str]]:
    """What `touch` gave for items, by number, and how those ended at which it kills its process or stands still.

    How is for a person. `touch`, the items and what it gives are pickled. An item has to kill twice: now and then a
    process is killed from outside. One that raises an error is in neither: that is left for whoever does the work.
    Raises RuntimeError where no process can be started.
    """
    made: dict[int, R] = {}
    died: dict[int, str] = {}
    first, suspect = 0, -1
    while first < len(items):
        reached, end = _run(touch, items, first, patience_s, made)
        if end is None:
            break
        if reached is None:
            raise RuntimeError(f"a process to try files in ended at its start: {end}")
        first = reached
        if first == suspect or end.startswith(_STILL):
            died[first] = end
            first += 1
        else:
            suspect = first
    return made, died


def mark_deadly(storage: Storage, folder: str, names: Iterable[str]) -> None:
    """Have items tried with care the next time too, by all that look for marks in the folder."""
    for name in names:
        storage.write(_mark(folder, name), b"")


def marked_deadly(storage: Storage, folder: str, names: Iterable[str]) -> set[str]:
    """Those of the items that were marked."""
    marks = {entry.path for entry in storage.list(folder)}
    return {name for name in names if _mark(folder, name) in marks}


def _mark(folder: str, name: str) -> str:
    return f"{folder}/{hashlib.sha256(name.encode(errors='surrogateescape')).hexdigest()[:32]}"


def _touch(touch: Callable[[T], object], item: T) -> None:
    touch(item)


def _run(
    touch: Callable[[T], R], items: Sequence[T], first: int, patience_s: float, made: dict[int, R]
) -> tuple[int | None, str | None]:
    """Touch items from `first` in a new process: the number of the last begun, and how it ended too soon.

    What comes of them is put into `made`.
    """
    # Not forked: this process has threads, and maybe a GPU.
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_touch_all, args=(sender, touch, items, first), daemon=True)
    process.start()
    sender.close()
    reached = None
    try:
        while receiver.poll(patience_s if reached is not None else patience_s + _START_S):
            match receiver.recv():
                case None:
                    return reached, None
                case int(number):
                    reached = number
                case number, result:
                    made[number] = result
        return reached, f"{_STILL} for {patience_s:.0f} s"
    except EOFError:
        process.join()
        return reached, f"{_DIED}: {_how(process.exitcode or 0)}"
    finally:
        process.kill()
        process.join(patience_s)
        receiver.close()


def _touch_all(sender: Connection, touch: Callable[[T], object], items: Sequence[T], first: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number in range(first, len(items)):
        sender.send(number)
        try:
            result = touch(items[number])
        except Exception:
            continue
        sender.send((number, result))
    sender.send(None)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
