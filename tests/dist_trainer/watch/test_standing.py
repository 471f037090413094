from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from dist_trainer.dist import MissingRanks
from dist_trainer.watch.standing import Standing, standing, write_stacks
from tests.support.gatherings import over_tcp


def seen_from_outside(seen: list[Standing]) -> threading.Thread:
    """A thread that looks at the main one, twice."""

    def look() -> None:
        for _ in range(2):
            time.sleep(0.2)
            seen.append(standing())

    thread = threading.Thread(target=look)
    thread.start()
    return thread


def test_a_main_thread_in_a_meeting_waits_for_others() -> None:
    server, (_, other) = over_tcp(2)
    seen: list[Standing] = []
    looking = seen_from_outside(seen)
    with pytest.raises(MissingRanks):
        other.share("seed", "", timeout_s=1.0)
    looking.join()
    assert seen[0] == seen[1], "it stood still"
    assert seen[0].waits
    assert seen[0].where.startswith("dist_trainer/dist.py:")
    assert seen[0].where.endswith(" _result")


def test_a_main_thread_that_works_moves_and_does_not_wait() -> None:
    seen: list[Standing] = []
    looking = seen_from_outside(seen)
    time.sleep(0.3)
    while looking.is_alive():
        sum(range(1000))
    looking.join()
    assert seen[0].signature != seen[1].signature
    assert not any(each.waits for each in seen)


def test_stacks_are_appended_below_time_host_and_cause(tmp_path: Path) -> None:
    file = tmp_path / "stacks" / "7_0.txt"
    for cause in ("the first", "the second"):
        assert write_stacks(file, cause)
    first, second = file.read_text().split(f" {socket.gethostname()}: the ")[1:]
    assert "test_stacks_are_appended" in first
    assert first.startswith("first\n")
    assert second.startswith("second\n")
