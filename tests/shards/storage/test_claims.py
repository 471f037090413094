"""Claims: one holder at a time while it lives, soon another when it is dead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.prepare.work.workers import Worker
from shards.storage import Folder
from shards.storage.claims import Claims
from tests.support.forks import Fork
from tests.support.jobs import Team, claims, contents, expected, foreign_claim, until, work


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    """Workers in processes of their own."""
    made = Team(tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize("stale", [False, True])
def test_of_many_that_want_a_claim_one_keeps_it(tmp_path: Path, stale: bool) -> None:
    if stale:
        foreign_claim(tmp_path, 0, age=100)

    def want() -> None:
        storage, held = Folder(tmp_path), tmp_path / f"held.{os.getpid()}"
        with Claims(storage, "work/claims", 2.0) as mine:
            (tmp_path / f"ready.{os.getpid()}").touch()
            until(lambda: len(list(tmp_path.glob("ready.*"))) == 6)
            found = mine.look("000000", storage.clock())
            if mine.take_over("000000", found) if found else mine.take("000000"):
                held.touch()
                until(lambda: (tmp_path / "end").exists() or not mine.holds("000000"))
                if not mine.holds("000000"):
                    held.unlink()

    forks = [Fork(want, tmp_path / "errors") for _ in range(6)]
    # On a loaded machine more than one may believe to have it, until they renew it.
    until(lambda: sum(fork.code is not None for fork in forks) == 5)
    assert len(list(tmp_path.glob("held.*"))) == 1
    (tmp_path / "end").touch()
    assert [fork.wait() for fork in forks] == [0] * 6, forks[0].text()
    assert claims(tmp_path) == []


def test_an_old_claim_is_taken_at_once_whatever_is_in_it(tmp_path: Path) -> None:
    foreign_claim(tmp_path, 0, age=100)
    unreadable = foreign_claim(tmp_path, 1)
    for data in (b"\0nothing", b"[]", b'{"host": "a"}', b'{"deaths": 1}'):
        unreadable.write_bytes(data)
        os.utime(unreadable, (0, 0))
        storage = Folder(tmp_path)
        with Claims(storage, "work/claims", 3.0) as mine:
            found = mine.look("000001", storage.clock())
            assert found is not None
            assert found.stale
    work(tmp_path, 2)
    assert contents(tmp_path) == expected(2)


def test_a_claim_that_is_renewed_is_left_alone_however_long(team: Team) -> None:
    def long(unit: int) -> None:
        (team.folder / f"begun.{unit}.{os.getpid()}").touch()
        time.sleep(2.5)

    forks = [team.start(1, Worker(index, 2), before=long, lease=1.0) for index in range(2)]
    assert [fork.wait() for fork in forks] == [0, 0]
    assert len(list(team.folder.glob("begun.*"))) == 1


def test_a_process_of_this_machine_that_is_gone_loses_its_claim_before_the_lease_ends(team: Team) -> None:
    killed = team.start(2, before=lambda unit: time.sleep(60), lease=3600.0)
    until(lambda: claims(team.root) == ["000000"])
    os.kill(killed.pid, signal.SIGKILL)  # not waited for yet: its number is still there
    work(team.root, 2)
    assert contents(team.root) == expected(2)


def test_another_process_of_the_same_number_does_not_hold_the_claim(tmp_path: Path) -> None:
    storage = Folder(tmp_path)
    with Claims(storage, "claims") as mine, Claims(storage, "claims") as other:
        assert mine.take("unit")
        found = other.look("unit", storage.clock())
        assert found is not None
        assert not found.stale
        text = storage.read("claims/unit").decode()
        storage.write("claims/unit", text.replace('"started": ', '"started": 1').encode())
        found = other.look("unit", storage.clock())
        assert found is not None
        assert found.stale


def test_of_two_that_live_and_hold_the_same_one_lets_go_at_the_next_renewal(tmp_path: Path) -> None:
    """The first was thought dead: stopped, or cut off, for longer than the lease."""
    storage = Folder(tmp_path)
    with Claims(storage, "claims", 0.8) as first, Claims(storage, "claims", 0.8) as second:
        assert first.take("unit")
        found = first.look("unit", storage.clock() + 1000)
        assert found is not None
        assert found.stale
        assert second.take_over("unit", found)
        until(lambda: first.holds("unit") is False)
        assert second.holds("unit")
        # What is no longer its own it does not take away.
        first.release("unit")
        assert storage.stat("claims/unit")
        second.release("unit")
        assert not storage.stat("claims/unit")
