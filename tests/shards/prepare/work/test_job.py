"""A job of units done by real processes: once where all goes well, in the same bytes whatever dies."""

from __future__ import annotations

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from shards.errors import InputError
from shards.prepare.work import shift
from shards.prepare.work.job import Job
from shards.prepare.work.workers import Worker
from shards.storage import Entry, Folder, open_storage
from tests.support import disks
from tests.support.forks import Fork
from tests.support.jobs import (
    ALONE,
    Team,
    claims,
    complete,
    contents,
    expected,
    files_of,
    foreign_holder,
    leftovers,
    until,
    work,
)
from tests.support.runs import ROOT


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Team]:
    """Workers in processes of their own."""
    made = Team(tmp_path)
    yield made
    made.end()


@pytest.mark.parametrize(("units", "workers"), [(0, 1), (1, 1), (1, 3), (7, 2), (60, 4)])
def test_workers_do_every_unit_once_and_all_get_the_result(tmp_path: Path, units: int, workers: int) -> None:
    root, log, results = tmp_path / "out", tmp_path / "log", tmp_path / "results"
    log.mkdir()
    results.mkdir()

    def life(index: int) -> None:
        result = work(root, units, Worker(index, workers), lambda unit: (log / f"{unit}.{index}").touch())
        (results / str(index)).write_text(json.dumps(result))

    forks = [Fork(partial(life, index), tmp_path / f"errors.{index}") for index in range(workers)]
    assert [fork.wait() for fork in forks] == [0] * workers, [fork.text() for fork in forks]
    assert sorted(int(path.stem) for path in log.iterdir()) == list(range(units))
    assert contents(root) == expected(units)
    assert {path.read_bytes() for path in results.iterdir()} == {expected(units)["manifest"]}
    assert claims(root) == []


def test_a_job_that_is_done_is_not_done_again(tmp_path: Path) -> None:
    first = work(tmp_path, 5)
    shutil.rmtree(tmp_path / "work/units")
    seen: list[tuple[int, int]] = []
    assert work(tmp_path, 5, before=stop_at(0), on_progress=lambda *done: seen.append(done)) == first
    assert seen == [(5, 5)]


def test_progress_counts_what_earlier_runs_did_and_never_falls(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        work(tmp_path, 6, before=stop_at(4))
    seen: list[tuple[int, int]] = []
    work(tmp_path, 6, on_progress=lambda *done: seen.append(done))
    assert seen[0] == (4, 6)
    assert seen[-1] == (6, 6)
    assert seen == sorted(seen)


def stop_at(last: int) -> Callable[[int], None]:
    def before(unit: int) -> None:
        if unit == last:
            raise RuntimeError(f"no {unit}")

    return before


# Killed.


class Dying(Folder):
    """A folder whose process is killed at one of the changes it makes: before it, in its middle or after it."""

    def __init__(self, root: Path, at: int) -> None:
        super().__init__(root)
        self.left = at

    def step(self) -> None:
        self.left -= 1
        if self.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    @contextmanager
    def writer(self, path: str) -> Iterator[BinaryIO]:
        self.step()
        with super().writer(path) as file:
            yield file
            self.step()
        self.step()

    def create(self, path: str, data: bytes) -> bool:
        self.step()
        created = super().create(path, data)
        self.step()
        return created

    def remove(self, path: str) -> None:
        self.step()
        super().remove(path)
        self.step()


def test_a_worker_killed_at_any_change_leaves_a_job_that_another_completes(tmp_path: Path) -> None:
    units, codes = 2, [-signal.SIGKILL]
    while codes[-1] == -signal.SIGKILL:
        at = len(codes)
        root = tmp_path / str(at)
        fork = Fork(partial(work, root, units, storage=Dying(root, at), lease=1.2), tmp_path / f"errors.{at}")
        codes.append(fork.wait())
        there = contents(root) if root.exists() else {}
        for unit in complete(root):
            assert files_of(unit).items() <= there.items(), f"killed at change {at}"
        work(root, units, Worker(1, 2), lease=1.2)
        assert contents(root) == expected(units), f"killed at change {at}"
        assert leftovers(root) == [], f"killed at change {at}"
    assert codes[-1] == 0
    # The job; for each unit a claim, two files, the unit, the release; then the last step alike.
    assert len(codes) > 2 + units * (2 + 2 * 3 + 2 + 2) + (2 + 3 + 2 + 2)


@pytest.mark.parametrize("seed", range(3))
def test_any_storm_of_kills_ends_in_the_same_bytes(team: Team, seed: int) -> None:
    """Workers come and go, are stopped for longer than a lease and wake; then one run with any number goes through."""
    units, draw = 50, random.Random(seed)
    for storm in range(3):
        root = team.folder / str(storm)
        for _ in range(6):
            count = draw.randint(1, 3)
            forks = [
                team.start(
                    units, Worker(index, count), root=root, lease=0.3, before=lambda unit: time.sleep(0.01)
                )
                for index in range(count)
            ]
            for fork in draw.sample(forks, draw.randint(1, count)):
                time.sleep(draw.uniform(0.01, 0.08))
                fork.kill(draw.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSTOP]))
            # Some go on beside the next ones.
            for fork in draw.sample(forks, draw.randint(0, count)):
                fork.kill()
        for fork in team.forks:
            fork.kill(signal.SIGCONT)
        last = [
            team.start(units, Worker(index, storm + 1), root=root, lease=0.3) for index in range(storm + 1)
        ]
        assert [fork.wait() for fork in last] == [0] * len(last), [fork.text() for fork in last]
        assert contents(root) == expected(units)


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_worker_told_to_stop_releases_its_claim(team: Team, signum: int, code: int) -> None:
    fork = team.start(3, before=lambda unit: time.sleep(60))
    until(lambda: claims(team.root) == ["000000"])
    fork.kill(signum)
    assert fork.wait() == code
    assert claims(team.root) == []


def test_an_error_ends_its_worker_with_the_claim_released_and_the_others_go_on(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no 1"):
        work(tmp_path, 4, before=stop_at(1))
    assert claims(tmp_path) == []
    work(tmp_path, 4)
    assert contents(tmp_path) == expected(4)


def test_an_object_store_serves_as_well(bucket: str) -> None:
    """Workers killed there, and one on a host that is gone: two others complete the job."""
    units, storage = 12, open_storage(bucket)

    def start(index: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "tests.support.jobs", bucket, *map(str, (units, index, 2, 3))]
        return subprocess.Popen(command, cwd=ROOT)

    storage.write("work/claims/000001", foreign_holder())
    died = [start(0), start(1)]
    until(lambda: len(storage.list("work/units")) >= 4)
    for process in died:
        process.kill()
        process.wait()
    last = [start(0), start(1)]
    assert [process.wait(30) for process in last] == [0, 0]
    assert contents(bucket) == expected(units)
    assert claims(bucket) == []


# Wrong input.

THEN = {"a": 1, "b": [2, {"c": 3}]}


@pytest.mark.parametrize(
    ("units", "identity", "message"),
    [
        (5, {"b": (2, {"c": 3}), "a": 1}, None),
        (5, {**THEN, "a": 7}, "a was 1 when this work began and is 7 now"),
        (5, {**THEN, "b": 1}, 'b was [2, {"c": 3}] when this work began and is 1 now'),
        (5, {"a": 1}, 'b was [2, {"c": 3}] when this work began and is not there now'),
        (5, {**THEN, "d": "x"}, 'd was not there when this work began and is "x" now'),
        (6, THEN, "units was 5 when this work began and is 6 now"),
    ],
)
def test_another_input_is_refused_by_the_key_that_differs(
    tmp_path: Path, units: int, identity: dict[str, Any], message: str | None
) -> None:
    Job(Folder(tmp_path), "work", 5, THEN)
    if message is None:
        Job(Folder(tmp_path), "work", units, identity)
        return
    with pytest.raises(InputError) as raised:
        Job(Folder(tmp_path), "work", units, identity)
    assert str(raised.value) == (
        f"{tmp_path}/work/job.json: {message}: give it as it was, or write to another place"
    )


@pytest.mark.parametrize("path", ["work/job.json", "work/units/000001.json", "work/result.json"])
def test_a_damaged_file_of_the_job_is_named(tmp_path: Path, path: str) -> None:
    work(tmp_path, 3)
    if path != "work/result.json":
        (tmp_path / "work/result.json").unlink()
    (tmp_path / path).write_text('{"unit": ')
    with pytest.raises(InputError, match=rf"{tmp_path}/{path} is damaged \(.*\): remove it and run"):
        work(tmp_path, 3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a part of the job."""
    with disks.small_disk(tmp_path / "disk", "128k") as root:
        yield root


def test_a_full_disk_is_said_and_a_later_run_completes(small_disk: Path) -> None:
    units = 40
    full = rf"{small_disk}: {os.strerror(errno.ENOSPC)}.*; what is done is kept: make room and run the same command"
    for _ in range(2):
        with pytest.raises(InputError) as raised:
            work(small_disk, units)
        assert re.match(full, str(raised.value))
        assert claims(small_disk) == []
    disks.remount(small_disk, "size=8m")
    work(small_disk, units)
    assert contents(small_disk) == expected(units)


def test_what_is_done_can_be_asked_for_where_nobody_may_write(small_disk: Path) -> None:
    done = work(small_disk, 2)
    disks.remount(small_disk, "ro")
    assert work(small_disk, 2) == done


def test_a_place_that_may_not_be_written_is_said(small_disk: Path) -> None:
    disks.remount(small_disk, "ro")
    with pytest.raises(
        InputError, match=rf"{small_disk}: .*; what is done is kept: see to the permissions and"
    ):
        work(small_disk, 2)


# Large jobs.


class Counting(Folder):
    """A folder that counts what is asked of it."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.calls: Counter[str] = Counter()

    def list(self, prefix: str = "") -> list[Entry]:
        self.calls["list"] += 1
        return super().list(prefix)

    def stat(self, path: str) -> Entry | None:
        self.calls["stat"] += path.startswith("work")
        return super().stat(path)

    def read(self, path: str) -> bytes:
        self.calls["read"] += 1
        return super().read(path)


def test_the_cost_of_a_unit_does_not_grow_with_the_number_of_units(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shift, "_LISTING_S", 3600.0)  # else a slow machine lists more often
    calls = {}
    for units in (6, 60):
        storage = Counting(tmp_path / str(units))
        work(tmp_path, units, storage=storage, lease=600.0)
        calls[units] = storage.calls
    # Of units at the start and around the last step, of claims at the end.
    assert calls[60]["list"] == calls[6]["list"] == 4
    assert calls[60]["read"] <= 10 * calls[6]["read"]
    assert calls[60]["stat"] <= 10 * calls[6]["stat"]
    # What is done already costs its part of the listing, and its result is read once, for the last step.
    (tmp_path / "60/work/result.json").unlink()
    storage = Counting(tmp_path / "60")
    work(tmp_path, 60, storage=storage, lease=600.0)
    assert storage.calls["list"] == 4
    assert storage.calls["read"] < 60 + 10
    assert storage.calls["stat"] < 60 + 10


# Units that are done again.


def reopen(root: Path, stale: set[int], worker: Worker = ALONE) -> int:
    return Job(Folder(root), "work", 4, {"input": "the same"}).reopen(lambda unit, _: unit in stale, worker)


def test_units_whose_results_are_stale_are_done_again_and_no_others(tmp_path: Path) -> None:
    work(tmp_path, 4)
    assert reopen(tmp_path, set()) == 0
    assert reopen(tmp_path, {1, 3}) == 2
    done: list[int] = []
    work(tmp_path, 4, before=done.append)
    assert done == [1, 3]
    assert contents(tmp_path) == expected(4)


def test_a_reopening_that_was_killed_is_taken_up_again(tmp_path: Path) -> None:
    work(tmp_path, 4)
    (tmp_path / "work/units/000002.json").unlink()
    assert reopen(tmp_path, set()) == 0
    done: list[int] = []
    work(tmp_path, 4, before=done.append)
    assert done == [2]


def test_later_workers_wait_until_the_first_one_has_reopened(tmp_path: Path) -> None:
    work(tmp_path, 4)
    with ThreadPoolExecutor() as pool:
        late = pool.submit(reopen, tmp_path, {1}, Worker(1, 2))
        time.sleep(0.3)
        assert not late.done()
        assert complete(tmp_path) == set(range(4))
        reopen(tmp_path, {1})
        late.result(10)
    assert complete(tmp_path) == {0, 2, 3}


def test_a_worker_that_took_a_unit_for_done_does_it_when_it_was_reopened(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError):
        work(tmp_path, 4, before=stop_at(3))

    def before(unit: int) -> None:
        if unit == 3 and 1 not in done:
            reopen(tmp_path, {1})
        done.append(unit)

    done: list[int] = []
    work(tmp_path, 4, before=before)
    assert done == [3, 1]
    assert contents(tmp_path) == expected(4)


def test_a_unit_forgotten_during_the_last_step_is_done_again(tmp_path: Path) -> None:
    storage, done, finished = Folder(tmp_path), [], []
    job = Job(storage, "work", 3, {"input": "the same"})

    def do(unit: int) -> dict[str, Any]:
        done.append(unit)
        return {"made": len(done)}

    def finish(results: list[dict[str, Any]]) -> dict[str, Any]:
        finished.append([result["made"] for result in results])
        if len(finished) == 1:
            job.reopen(lambda unit, _: unit == 1, ALONE)
        return {"made": finished[-1]}

    result = job.run(Worker(), do, finish, lambda done, units: None)
    assert finished == [[1, 2, 3], [1, 4, 3]]
    assert result == {"made": [1, 4, 3]}


def test_the_first_result_that_is_recorded_counts(tmp_path: Path) -> None:
    """Of two workers at one unit: both are told which one it is."""
    storage, settled = Folder(tmp_path), []
    job = Job(storage, "work", 1, {"input": "the same"})

    def do(unit: int) -> dict[str, Any]:
        storage.write("work/units/000000.json", b'{"by": "another"}')
        return {"by": "this"}

    result = job.run(
        Worker(),
        do,
        lambda results: results[0],
        lambda done, units: None,
        settle=lambda unit, made, recorded: settled.append((unit, made, recorded)),
    )
    assert result == {"by": "another"}
    assert settled == [(0, {"by": "this"}, {"by": "another"})]
