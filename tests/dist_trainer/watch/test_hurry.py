"""Ranks that end by themselves, and do not: the watch ends them."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.dist import FAILED
from dist_trainer.watch import progress
from dist_trainer.watch import watch as watching
from dist_trainer.watch.watch import Watch
from tests.support.forks import Fork
from tests.support.gatherings import over_tcp


def stuck(tmp_path: Path, size: int, before: Callable[[Watch], None]) -> Fork:
    """A rank 0 that never comes back from its work, after `before`; the others have told their end."""

    def act() -> None:
        _server, [gathering] = over_tcp(size, ranks=[0])
        for rank in range(1, size):
            gathering.twin().set(f"ended/{rank}", "1")
            gathering.twin().set(f"beat/{rank}", "[]")
            gathering.twin().set(f"host/{rank}", "other")
        watch = Watch(gathering, silent_s=60, hang_s=60, stacks=tmp_path / "stacks")
        watch.interval = 0.2
        progress.doing("its work")
        watch.start()
        before(watch)
        signal.pause()

    return Fork(act, tmp_path / "errors")


def assert_ended(rank: Fork, tmp_path: Path, line: str) -> None:
    assert rank.wait() == 1, rank.text()
    assert f"rank 0 ends: {line}; stood in its work" in rank.text()
    assert "in stuck" in (tmp_path / "stacks" / "local_0.txt").read_text() or "in act" in rank.text()


def test_a_rank_that_is_stuck_after_another_failed_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "_AFTER_FAILURE_S", 1.0)
    rank = stuck(tmp_path, 2, lambda watch: watch._gathering.twin().set(FAILED, "1"))
    assert_ended(rank, tmp_path, "rank 1 failed")


@pytest.mark.parametrize("size", [1, 2])
def test_a_rank_that_is_stuck_after_its_work_is_ended(tmp_path: Path, size: int) -> None:
    began = time.monotonic()
    assert_ended(
        stuck(tmp_path, size, lambda watch: watch.leave(1.0)), tmp_path, "it could not end by itself"
    )
    assert time.monotonic() - began >= 1.0
