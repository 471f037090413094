"""Waiting for work that may never end, such as a hub's client or a hung disk, no longer than a limit."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TypeVar

from dist_trainer.watch import progress

_Found = TypeVar("_Found")


def limited(work: Callable[[], _Found], limit_s: float, heed: Callable[[], None] = progress.moved) -> _Found:
    """What `work` returns or raises. Raises TimeoutError after `limit_s` seconds, and what `heed` raises, which is
    called every second; `work` is then left to itself.
    """
    found: list[_Found] = []
    failed: list[Exception] = []

    def run() -> None:
        try:
            found.append(work())
        except Exception as error:
            failed.append(error)

    thread = threading.Thread(target=run, name="limited", daemon=True)
    thread.start()
    deadline = time.monotonic() + limit_s
    while thread.is_alive() and (left := deadline - time.monotonic()) > 0:
        thread.join(min(1.0, left))
        progress.moved()
        heed()
    if failed:
        raise failed[0]
    if not found:
        raise TimeoutError(f"no answer within {round(limit_s, 1):g} seconds")
    return found[0]
