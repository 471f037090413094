"""Runs on disk: which there are in a folder, and what their folders say of their jobs. Imports without torch."""

from __future__ import annotations

import fcntl
from pathlib import Path

from dist_trainer.logs import read_log
from dist_trainer.rundir import RunFolder
from launch.snapshot import CONFIG_NAME, SNAPSHOTS
from shards.errors import InputError


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's: one has begun in it, or is queued."""
    run = RunFolder(folder)
    return any(path.is_file() for path in (run.state, run.jobs))


def runs_of(folder: Path) -> list[Path]:
    """The run in `folder`, else those in it and in its sweeps, by name. Raises InputError when there is none."""
    if not folder.is_dir():
        raise InputError(
            f"{folder}: no such folder; give a run's folder (its output_dir), or one that holds runs"
        )
    if is_run(folder):
        return [folder]
    found = []
    for child in sorted(path for path in folder.iterdir() if path.is_dir()):
        # A sweep is a folder of runs.
        inside = [child] if is_run(child) else sorted(child.iterdir())
        found += [path for path in inside if path.is_dir() and is_run(path)]
    if not found:
        raise InputError(
            f"{folder}: holds no run; give a run's folder (its output_dir), or one that holds runs"
        )
    return found


def one_run(folder: Path) -> RunFolder:
    """The run in `folder`. Raises InputError where there is none."""
    if not is_run(folder):
        raise InputError(f"{folder}: is no run; give one, as {runs_of(folder)[0]}")
    return RunFolder(folder.absolute())


def one_or_swept(folder: Path) -> list[RunFolder]:
    """The run in `folder`, or all runs of a sweep that was queued into it. Raises InputError where it is neither."""
    if is_run(folder):
        return [one_run(folder)]
    found = runs_of(folder)
    if not (folder / SNAPSHOTS).is_dir():
        raise InputError(f"{folder}: is neither a run nor a sweep; give one, as {found[0]}")
    return [RunFolder(path.absolute()) for path in found if path.parent == folder]


def jobs_of(run: RunFolder) -> list[str]:
    """Jobs that were queued for a run or began it, the newest last."""
    jobs = [
        str(record["job"]) for record in read_log(run.jobs) if record.get("event") in ("submitted", "began")
    ]
    return list(dict.fromkeys(reversed(jobs)))[::-1]


def is_held(run: RunFolder) -> bool:
    """Whether a process trains in the folder, as far as the file system's locks tell."""
    try:
        with (run.root / ".lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no launch yet, or a file system without locks
        return False
    return False


def settings_of(run: RunFolder) -> Path | None:
    """The resolved config of a run, also of one that is queued and has not begun."""
    if run.config.is_file():
        return run.config
    kept = [path for path in (run.root / SNAPSHOTS).glob(f"*/{CONFIG_NAME}") if path.is_file()]
    return max(kept, key=lambda path: path.stat().st_mtime, default=None)
