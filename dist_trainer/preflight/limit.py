"""Several trials at once on this rank, none of which may hang it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from shards.errors import InputError


@dataclass(frozen=True)
class Outcome:
    """What a trial found (JSON values), or what was wrong; `user`: the user can put it right, `late`: it hangs."""

    value: Any = None
    fault: str = ""
    user: bool = False
    late: bool = False


def try_all(limit: float, trials: Mapping[str, Callable[[], Any]]) -> dict[str, Outcome]:
    """Run trials at the same time; their outcomes after `limit` seconds at most.

    One that hangs is left to its thread: a dead device or file system may never answer.
    """
    outcomes: dict[str, Outcome] = {}

    def attempt(name: str, trial: Callable[[], Any]) -> None:
        try:
            outcomes[name] = Outcome(trial())
        except InputError as error:
            outcomes[name] = Outcome(fault=str(error), user=True)
        except Exception as error:
            reason = str(error).partition("\n")[0]
            outcomes[name] = Outcome(fault=reason or type(error).__name__)

    deadline = time.monotonic() + limit
    threads = [threading.Thread(target=attempt, args=item, daemon=True) for item in trials.items()]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    late = Outcome(fault=f"did not end within {limit:g} s", late=True)
    return {name: outcomes.get(name, late) for name in trials}
