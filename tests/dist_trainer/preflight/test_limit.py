from __future__ import annotations

import threading
import time

from dist_trainer.preflight.limit import Outcome, try_all
from shards.errors import InputError


def fails(error: Exception) -> None:
    raise error


def test_what_hangs_is_left_and_what_ended_counts() -> None:
    forever = threading.Event()
    began = time.monotonic()
    found = try_all(
        0.3,
        {
            "good": lambda: 3,
            "hangs": forever.wait,
            "input": lambda: fails(InputError("a: b")),
            "broken": lambda: fails(OSError("gone")),
        },
    )
    assert time.monotonic() - began < 10
    forever.set()
    assert found == {
        "good": Outcome(3),
        "hangs": Outcome(fault="did not end within 0.3 s", late=True),
        "input": Outcome(fault="a: b", user=True),
        "broken": Outcome(fault="gone"),
    }
