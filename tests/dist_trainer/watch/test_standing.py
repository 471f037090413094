from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import pytest

from dist_trainer.dist import MissingRanks
from dist_trainer.watch.standing import Standing, standing, write_stacks
from tests.support.gatherings import over_tcp


def seen_from_outside(seen: list[Standing], looks: int = 2) -> threading.Thread:
    """A thread that looks at the main one, in the first half second."""

    def look() -> None:
        for _ in range(looks):
            time.sleep(0.4 / looks)
            seen.append(standing())

    thread = threading.Thread(target=look)
    thread.start()
    return thread


@pytest.mark.parametrize("rank", [0, 1])
def test_a_main_thread_in_a_meeting_stands_still_and_waits_for_others(rank: int) -> None:
    _server, [gathering] = over_tcp(2, ranks=[rank])
    seen: list[Standing] = []
    looking = seen_from_outside(seen, looks=10)
    with pytest.raises(MissingRanks):
        gathering.meet("saving", 1.0) if rank == 0 else gathering.share("seed", "", 1.0)
    looking.join()
    assert len({each.signature for each in seen}) == 1, "also where it asks again and again"
    assert all(each.waits for each in seen)
    assert seen[0].where.startswith("dist_trainer/dist.py:")


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
