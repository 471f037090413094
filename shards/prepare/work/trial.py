"""Items that may kill the process that touches them, found out in processes of their own."""

from __future__ import annotations

import ctypes
import signal
from collections.abc import Callable, Sequence
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TypeVar

T = TypeVar("T")
_STILL, _DIED = "nothing came of it", "the process died while reading it"
_START_S = 60.0  # for a process to begin
_PR_SET_PDEATHSIG = 1


def deadly(touch: Callable[[T], object], items: Sequence[T], patience_s: float) -> dict[int, str]:
    """Numbers of the items at which `touch` kills its process or stands still, each with how, for a person.

    `touch` and the items are pickled. An item has to kill twice: now and then a process is killed from outside.
    Its errors are left for whoever does the work. Raises RuntimeError where no process can be started.
    """
    found: dict[int, str] = {}
    first, suspect = 0, -1
    while first < len(items):
        reached, end = _run(touch, items[first:], patience_s)
        if end is None:
            break
        if reached is None:
            raise RuntimeError(f"a process to try files in ended at its start: {end}")
        first += reached
        if first == suspect or end.startswith(_STILL):
            found[first] = end
            first += 1
        else:
            suspect = first
    return found


def was_deadly(reason: str) -> bool:
    """Whether `deadly` gave this reason: the item is to be tried with care the next time too."""
    return reason.startswith((_STILL, _DIED))


def _run(
    touch: Callable[[T], object], items: Sequence[T], patience_s: float
) -> tuple[int | None, str | None]:
    """Touch items in a new process: the number of the last that was begun, and how the process ended too soon."""
    # Not forked: this process has threads, and maybe a GPU.
    context = get_context("spawn")
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_touch_all, args=(sender, touch, items), daemon=True)
    process.start()
    sender.close()
    reached = None
    try:
        while receiver.poll(patience_s if reached is not None else patience_s + _START_S):
            if (number := receiver.recv()) is None:
                return reached, None
            reached = number
        return reached, f"{_STILL} for {patience_s:.0f} s"
    except EOFError:
        process.join()
        return reached, f"{_DIED}: {_how(process.exitcode or 0)}"
    finally:
        process.kill()
        process.join(patience_s)
        receiver.close()


def _touch_all(sender: Connection, touch: Callable[[T], object], items: Sequence[T]) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    for number, item in enumerate(items):
        sender.send(number)
        try:
            touch(item)
        except Exception:
            continue
    sender.send(None)


def _how(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
