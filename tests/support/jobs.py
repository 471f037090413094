"""A small job: each unit leaves two files, the last step a list of them.

python -m tests.support.jobs ROOT UNITS INDEX COUNT LEASE
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from shards.prepare.work.job import Job
from shards.prepare.work.workers import Worker
from shards.storage import Root, Storage, open_storage
from tests.support.forks import Fork

LEASE_S = 6.0
ALONE = Worker()

Result = dict[str, Any]


def work(
    root: Root,
    units: int,
    worker: Worker = ALONE,
    before: Callable[[int], object] = lambda unit: None,
    lease: float = LEASE_S,
    storage: Storage | None = None,
    on_progress: Callable[[int, int], None] = lambda done, units: None,
    describe: Callable[[int], str] | None = None,
    careful: Callable[[int], object] = lambda unit: None,
) -> Result:
    """One worker's whole life.

    `before(unit)` is called before a unit's files are written, `careful(unit)` before that where a worker died at it.
    """
    place = storage or open_storage(root)

    def do(unit: int) -> Result:
        before(unit)
        files = files_of(unit)
        for path, data in files.items():
            place.write(path, data)
        return {"unit": unit, "bytes": sum(map(len, files.values()))}

    def do_with_care(unit: int) -> Result:
        careful(unit)
        return do(unit)

    job = Job(place, "work", units, {"input": "the same"}, lease)
    finish = partial(_finish, place)
    return job.run(worker, do, finish, on_progress, describe, careful=do_with_care)


def files_of(unit: int) -> dict[str, bytes]:
    """What a unit has to leave."""
    draw = random.Random(unit)
    return {f"shards/{unit:06d}.{part}": draw.randbytes(100 + 40 * unit) for part in "ab"}


def expected(units: int) -> dict[str, bytes]:
    """What the whole job has to leave."""
    made = {path: data for unit in range(units) for path, data in files_of(unit).items()}
    return {**made, "manifest": _listed(list(range(units)), sum(map(len, made.values())))}


def contents(root: Root) -> dict[str, bytes]:
    """What it left, without its own notes and without what remained of writes broken off."""
    place = open_storage(root)
    return {entry.path: place.read(entry.path) for entry in place.list() if "work/" not in entry.path}


def leftovers(root: Path) -> list[str]:
    """Notes of workers: claims, and files half written of claims and units."""
    return [*claims(root), *(str(path) for path in (root / "work").glob("*/.*.tmp"))]


def complete(root: Path) -> set[int]:
    """Numbers of the units that are complete."""
    return {int(path.stem) for path in (root / "work/units").glob("[0-9]*.json")}


def claims(root: Root) -> list[str]:
    """Names of the claims that are held."""
    return [Path(entry.path).name for entry in open_storage(root).list("work/claims")]


class Team:
    """Workers in processes of their own on the job in `folder/out`; used as a fixture that ends them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "out"
        self.forks: list[Fork] = []

    def start(self, units: int, worker: Worker = ALONE, **options: Any) -> Fork:
        """One more; `options` are those of `work`."""
        root = options.pop("root", self.root)
        errors = self.folder / f"errors.{len(self.forks)}"
        self.forks.append(Fork(lambda: work(root, units, worker, **options), errors))
        return self.forks[-1]

    def end(self) -> None:
        """Kill those that still run."""
        for fork in self.forks:
            fork.kill()
            fork.wait()


def foreign_claim(root: Path, unit: int, age: float = 0.0, deaths: int = 0) -> Path:
    """The claim of a process on another host, renewed for the last time `age` seconds ago."""
    path = root / f"work/claims/{unit:06d}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(foreign_holder(deaths))
    os.utime(path, (time.time() - age, time.time() - age))
    return path


def foreign_holder(deaths: int = 0) -> bytes:
    """What is in the claim of a process on another host."""
    holder = {"host": "node17", "boot": "b", "pid": 5, "started": 1, "nonce": "n"}
    return json.dumps({**holder, "deaths": [[0.0, ""]] * deaths}).encode()


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait for something, not for ever."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.005)


def _finish(storage: Storage, results: list[Result]) -> Result:
    data = _listed([result["unit"] for result in results], sum(result["bytes"] for result in results))
    storage.write("manifest", data)
    return dict(json.loads(data))


def _listed(units: list[int], size: int) -> bytes:
    return json.dumps({"units": units, "bytes": size}).encode()


if __name__ == "__main__":
    root, *numbers = sys.argv[1:]
    units, index, count, lease = map(int, numbers)
    work(root, units, Worker(index, count), lease=lease)
