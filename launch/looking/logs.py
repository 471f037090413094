"""What the ranks of a run printed: RUN/logs/ranks/<job>_<rank>.log, read while it is written."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from dist_trainer.rundir import RunFolder
from launch.ended.tail import Tail
from shards.errors import InputError

_LOOK_S, _BLOCK_BYTES = 0.5, 1 << 16


def newest_job(run: RunFolder) -> str | None:
    """The job whose ranks printed last; None where none has."""
    files = [(path.stat().st_mtime, path.stem.rpartition("_")[0]) for path in run.ranks.glob("*_*.log")]
    return max(files)[1] if files else None


def log_of(run: RunFolder, rank: int, job: str | None = None) -> Path:
    """The log of a rank, of the newest job by default. Raises InputError, naming what there is, where there is none."""
    path = _newest(run, rank) if job is None else run.ranks / f"{job}_{rank}.log"
    if path is not None and path.is_file():
        return path
    there = sorted({path.stem.rpartition("_")[0] for path in run.ranks.glob("*_*.log")})
    if not there:
        own = run.root / "logs" / "submitit"
        also = f", and what its job itself printed in {own}" if own.is_dir() else ""
        raise InputError(f"{run.root}: no rank has printed yet; see `ltx-launch status {run.root}`{also}")
    if job is not None and job not in there:
        raise InputError(f"--job {job}: printed nothing in {run.ranks}; these did: {', '.join(there)}")
    ranks = sum(1 for _ in run.ranks.glob(f"{job or newest_job(run)}_*.log"))
    raise InputError(f"--rank {rank}: there are logs of {ranks} ranks, 0 to {ranks - 1}, in {run.ranks}")


def last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a file, read from its end."""
    with path.open("rb") as log:
        start, data = log.seek(0, os.SEEK_END), b""
        while start > 0 and data.count(b"\n") <= count:
            began, start = start, max(0, start - _BLOCK_BYTES)
            log.seek(start)
            data = log.read(began - start) + data
    return data.decode(errors="replace").splitlines()[-count:] if count else []


def errors(run: RunFolder, job: str | None = None) -> Iterator[str]:
    """The lines of a job, by default the newest, with which its ranks explain an error, each after its rank."""
    name = job or newest_job(run)
    paths = run.ranks.glob(f"{name}_*.log")
    for path in sorted(paths, key=lambda path: (len(path.name), path.name)):
        with path.open(encoding="utf-8", errors="replace") as log:
            for line in log:
                if line.startswith("error:"):
                    yield f"rank {path.stem.rpartition('_')[2]}: {line.rstrip()}"


def follow(run: RunFolder, rank: int, job: str | None, lines: int, say: Callable[[str], None]) -> None:
    """Say a rank's last lines, then what it adds; without a `job`, go on with the logs of later jobs. Never returns."""
    tail = Tail(log_of(run, rank, job))
    say("".join(f"{line}\n" for line in last_lines(tail.path, lines)))
    tail = Tail(tail.path, tail.path.stat().st_size)
    while True:
        time.sleep(_LOOK_S)
        later = _newest(run, rank) if job is None else None
        if text := tail.read(rest=later not in (None, tail.path)):
            say(text)
        if later is not None and later != tail.path:
            say(f"--- {later.name}\n")
            tail = Tail(later)


def _newest(run: RunFolder, rank: int) -> Path | None:
    """The log of a rank that was written to last."""
    return max(run.ranks.glob(f"*_{rank}.log"), key=lambda path: path.stat().st_mtime, default=None)
