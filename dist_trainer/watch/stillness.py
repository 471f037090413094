"""For how long things have not changed, in time this process was awake."""

from __future__ import annotations

import time
from collections.abc import Hashable
from typing import Any


class Stillness:
    """Ages of values that are looked at again and again.

    Between two ticks at most `longest_s` seconds count: where this process itself was stopped (Ctrl-Z, `scontrol
    suspend`), it has missed what happened meanwhile and may not blame others.
    """

    def __init__(self, longest_s: float) -> None:
        self._longest_s = longest_s
        self._awake = 0.0
        self._ticked = time.monotonic()
        self._seen: dict[Hashable, tuple[Any, float]] = {}

    def tick(self) -> None:
        """Let time pass."""
        now = time.monotonic()
        self._awake += min(now - self._ticked, self._longest_s)
        self._ticked = now

    def seconds(self, name: Hashable, value: Any) -> float:
        """How long `name` has had this value."""
        if name not in self._seen or self._seen[name][0] != value:
            self._seen[name] = (value, self._awake)
        return self._awake - self._seen[name][1]
