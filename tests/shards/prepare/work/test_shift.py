"""What one worker of several does: its own part, what others left, and waiting."""

from __future__ import annotations

import json
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.prepare.work import shift
from shards.prepare.work.shift import MOST_DEATHS, order
from shards.prepare.work.workers import Worker
from tests.support.jobs import Team, complete, contents, expected, foreign_claim, foreign_holder, until, work


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    """Workers in processes of their own."""
    made = Team(tmp_path)
    yield made
    made.end()


@given(units=st.integers(0, 200), count=st.integers(1, 40), data=st.data())
def test_every_worker_goes_through_all_units_from_a_place_of_its_own(
    units: int, count: int, data: st.DataObject
) -> None:
    index = data.draw(st.integers(0, count - 1))
    assert sorted(order(units, Worker(index, count))) == list(range(units))
    firsts = [next(order(units, Worker(one, count))) for one in range(count)] if units >= count else []
    assert len(set(firsts)) == len(firsts)


def test_a_slow_worker_does_not_hold_the_rest(team: Team) -> None:
    log = team.folder / "log"
    log.mkdir()

    def before(unit: int, index: int) -> None:
        (log / f"{unit}.{index}").touch()
        if index == 0:
            until((team.folder / "go").exists)

    forks = [team.start(40, Worker(index, 3), before=partial(before, index=index)) for index in range(3)]
    until(lambda: len(complete(team.root)) == 39)
    (team.folder / "go").touch()
    assert [fork.wait() for fork in forks] == [0, 0, 0]
    assert [path.name for path in log.glob("*.0")] == ["0.0"]
    assert len(list(log.iterdir())) == 40


def test_the_claim_of_a_dead_host_is_taken_after_its_lease_and_last(tmp_path: Path) -> None:
    lease, began = 1.0, foreign_claim(tmp_path, 0).stat().st_mtime
    done: list[tuple[int, float]] = []
    work(tmp_path, 4, before=lambda unit: done.append((unit, time.time())), lease=lease)
    assert [unit for unit, _ in done] == [1, 2, 3, 0]
    assert done[-1][1] - began > lease
    assert contents(tmp_path) == expected(4)


def test_it_is_said_for_whom_a_worker_waits(team: Team, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift, "_PATIENCE_S", 0.3)
    for unit in range(5):
        foreign_claim(team.root, unit)
    waiting = team.start(6, describe=lambda unit: f"clips {10 * unit} to {10 * unit + 9}", lease=2.0)
    assert waiting.wait() == 0
    first = waiting.text().splitlines()[0]
    held = r"unit \d \(clips \d+ to \d+\), with process 5 on node17"
    assert re.fullmatch(rf"waiting for \d s for {held}; {held}; {held}, and 2 more", first)
    assert contents(team.root) == expected(6)


def test_a_unit_that_kills_its_workers_is_given_up_by_name_when_all_else_is_done(team: Team) -> None:
    workers, units = 8, 16

    def before(unit: int, index: int) -> None:
        (team.folder / f"here.{index}").touch()
        until(lambda: len(list(team.folder.glob("here.*"))) == workers)
        if unit == 5:
            os.kill(os.getpid(), signal.SIGKILL)

    def describe(unit: int) -> str:
        return f"bad.mp4 and {unit} more"

    forks = [
        team.start(units, Worker(index, workers), before=partial(before, index=index), describe=describe)
        for index in range(workers)
    ]
    codes = Counter(fork.wait() for fork in forks)
    assert codes == {-signal.SIGKILL: MOST_DEATHS, 2: workers - MOST_DEATHS}
    assert complete(team.root) == set(range(units)) - {5}
    said = [line for fork in forks for line in fork.text().splitlines()]
    assert sorted(line for line in said if line.startswith("WARNING")) == [
        f"WARNING: unit 5 (bad.mp4 and 5 more): {deaths} workers died at it so far; trying it again"
        for deaths in (3, 4)
    ]
    refusal = (
        rf"error: {team.root}: unit 5 \(bad.mp4 and 5 more\) is not tried again: 5 workers died at it, the last was "
        r"process \d+ on \S+. See whether a file in it is bad or memory is short, then start the job again"
    )
    errors = [line for line in said if line.startswith("error")]
    assert len(errors) == workers - MOST_DEATHS
    assert all(re.fullmatch(refusal, line) for line in errors)
    # Whoever starts the job again has it tried again.
    work(team.root, units)
    assert contents(team.root) == expected(units)


def test_a_unit_given_up_is_waited_for_when_another_worker_has_taken_it_over(tmp_path: Path) -> None:
    def others() -> None:
        time.sleep(0.5)
        foreign_claim(tmp_path, 0)
        other.unlink()
        until(lambda: 1 in complete(tmp_path))
        time.sleep(0.5)
        given_up.unlink()

    given_up, other = foreign_claim(tmp_path, 0), foreign_claim(tmp_path, 1)
    holder = json.loads(foreign_holder())
    given_up.write_text(json.dumps({**holder, "deaths": [[time.time() + 100, ""]] * MOST_DEATHS}))
    os.utime(given_up, (time.time() - 100,) * 2)
    with ThreadPoolExecutor() as pool:
        pool.submit(others)
        work(tmp_path, 2)
    assert contents(tmp_path) == expected(2)


def test_deaths_in_earlier_runs_are_told_and_refuse_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    foreign_claim(tmp_path, 1, age=100, deaths=20)
    work(tmp_path, 3)
    assert contents(tmp_path) == expected(3)
    assert "WARNING: unit 1: 21 workers died at it so far; trying it again" in capsys.readouterr().err


def test_a_unit_at_which_a_worker_died_is_done_with_care(tmp_path: Path) -> None:
    foreign_claim(tmp_path, 1, age=100)
    careful: list[int] = []
    work(tmp_path, 3, careful=careful.append)
    assert careful == [1]
    assert contents(tmp_path) == expected(3)
