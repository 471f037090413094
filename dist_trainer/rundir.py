"""A run on disk: its folders, and what it fixed at first launch."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TextIO

from dist_trainer.logs import read_log
from shards.atomic import replacing
from shards.errors import InputError

_PAUSE_S = 0.1
_LOOK_S = 1.0  # one who only looks whether a lock is taken (`ltx-launch status`) has it for a moment
_DYING_S = (
    120.0  # a process may end long after its job: one that waits for a disk, or whose node lost its power
)
_UNSEEN_S = 90.0  # NFS may hold for a minute that a file which was looked for is not there


class StillHeld(RuntimeError):
    """A run's folder is held by a process that may be one of an earlier start, so that a later start may get it."""


@dataclass(frozen=True)
class RunState:
    """What may not change over a run's life, whatever the number of ranks: it decides which sample trains when."""

    seed: int
    samples_per_step: int | None
    tokens_per_step: int | None
    mix: str
    loss_weighting: str
    dataset: str
    model_source: str
    training_mode: str
    conditioning_mode: str
    first_frame_conditioning_p: float
    sampling: str
    causal_positions: bool
    optimizer: str
    lora_alpha: int | None
    version: str
    holdout: float = 0.0
    load_checkpoint: str | None = None
    started_from: dict[str, str] | None = None  # what load_checkpoint stood for at the first launch


@dataclass(frozen=True)
class RunFolder:
    """Paths of a run below `root`."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.root / "checkpoints"

    @property
    def exports(self) -> Path:
        """Folder of the exported weights."""
        return self.root / "exports"

    @property
    def facts(self) -> Path:
        """What exports tell of the data: trigger word, how much smaller references are."""
        return self.root / "facts.json"

    @property
    def prompts(self) -> Path:
        """Folder of what sample videos are made from, encoded."""
        return self.root / "validation"

    @property
    def samples(self) -> Path:
        """Folder of the sample videos, a folder for each step in it."""
        return self.root / "samples"

    @property
    def tensorboard(self) -> Path:
        """Folder of the TensorBoard events."""
        return self.root / "tensorboard"

    @property
    def metrics(self) -> Path:
        """One JSON line per step: the figures TensorBoard shows."""
        return self.root / "metrics.jsonl"

    @property
    def trained(self) -> Path:
        """One JSON line per step: the sample ids that were trained."""
        return self.root / "logs" / "trained.jsonl"

    @property
    def replaced(self) -> Path:
        """One JSON line per damaged sample of a step: which it was, and what was trained in its place."""
        return self.root / "logs" / "replaced.jsonl"

    @property
    def skipped(self) -> Path:
        """One JSON line per step whose update was left out: its samples' ids and why."""
        return self.root / "logs" / "skipped.jsonl"

    @property
    def saves(self) -> Path:
        """One JSON line per checkpoint saved: time, step, and how many seconds it took."""
        return self.root / "logs" / "saves.jsonl"

    @property
    def figures(self) -> Path:
        """One JSON line per measurement that is not of every step: held-out losses, and how long such things took."""
        return self.root / "logs" / "figures.jsonl"

    @property
    def jobs(self) -> Path:
        """One JSON line per job that began or ended: event, job, nodes, ranks, step, code, cause."""
        return self.root / "logs" / "jobs.jsonl"

    @property
    def bad_nodes(self) -> Path:
        """One JSON line per node that failed its trial: time, job, host, cause."""
        return self.root / "logs" / "bad_nodes.jsonl"

    @property
    def ranks(self) -> Path:
        """What each rank of each job printed: <job>_<rank>.log."""
        return self.root / "logs" / "ranks"

    @property
    def stacks(self) -> Path:
        """Where each rank stood when a run hung: <job>_<rank>.txt."""
        return self.root / "logs" / "stacks"

    @property
    def done(self) -> Path:
        """There when all steps are trained: holds their number."""
        return self.root / "DONE"

    def steps_done(self) -> int:
        """The number of steps that DONE holds; 0 where there is none, or none that can be read."""
        try:
            return int(self.done.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return 0

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.root / "config.yaml"

    @property
    def state(self) -> Path:
        """What the run fixed at first launch."""
        return self.root / "state.json"

    def read_state(self) -> RunState | None:
        """The state of an earlier launch in this folder, or None. Raises InputError when it cannot be read."""
        if self.root.exists() and not self.root.is_dir():
            raise InputError(f"output_dir: {self.root}: is a file; choose a folder")
        if not self.state.is_file():
            return None
        try:
            return RunState(**json.loads(self.state.read_text(encoding="utf-8")))
        except (json.JSONDecodeError, TypeError) as error:
            raise InputError(
                f"{self.state}: not a run's state ({error}); choose another output_dir"
            ) from error

    def appears(self, limit_s: float = _UNSEEN_S) -> bool:
        """Whether this host sees, within `limit_s` seconds, the state that rank 0 has written."""
        deadline = time.monotonic() + limit_s
        while not self.state.is_file():
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE_S)
        return True

    def follows(self, environ: Mapping[str, str]) -> bool:
        """Whether the Slurm job of `environ` comes after an earlier start of this run, its own or another job's."""
        job, restarts = environ.get("SLURM_JOB_ID"), int(environ.get("SLURM_RESTART_COUNT") or 0)
        starts = [record for record in read_log(self.jobs) if record.get("event") == "began"] if job else []
        return bool(job) and (restarts > 0 or any(record.get("job") != job for record in starts))

    @contextmanager
    def hold(self, follows: bool = False, dying_s: float = _DYING_S) -> Iterator[None]:
        """Keep other launches out of this folder; the system lets go of it with the process, however that ends.

        Raises InputError when another launch holds it, or it cannot be written. One that `follows` an earlier start
        waits `dying_s` seconds for that to let go, says so, and raises StillHeld.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            lock = (self.root / ".lock").open("w")
        except OSError as error:
            raise InputError(
                f"output_dir: {self.root}: cannot be written: {error}; choose another folder"
            ) from error
        with lock:
            # A file system without locks says another error: nothing to hold on to.
            with suppress(OSError):
                held = not _lock(lock, _LOOK_S)
                if held and follows:
                    print(
                        f"output_dir: {self.root}: a process of an earlier start still holds this folder; "
                        f"waiting {dying_s:g} s for it to end",
                        flush=True,
                    )
                    if not _lock(lock, dying_s):
                        raise StillHeld(
                            f"output_dir: {self.root}: a process of an earlier start, or another launch, has held this "
                            f"folder for {dying_s:g} s; end it, if it does not end by itself"
                        )
                elif held:
                    raise InputError(
                        f"output_dir: {self.root}: another launch is training in this folder; stop it first, "
                        "or choose another folder"
                    )
            yield

    def begin(self, state: RunState, config_yaml: str) -> None:
        """Create the folders and write state and resolved config (rank 0 only). Raises InputError when it cannot."""
        try:
            for folder in (self.root, self.checkpoints, self.trained.parent):
                folder.mkdir(parents=True, exist_ok=True)
            write_text(self.config, config_yaml)
            write_text(self.state, json.dumps(asdict(state), indent=2) + "\n")
        except OSError as error:
            raise InputError(
                f"output_dir: {self.root}: cannot be written: {error}; choose another folder"
            ) from error

    def check_same(self, before: RunState, now: RunState) -> None:
        """Raise InputError naming each setting that differs from the run's first launch."""
        differing = [
            f"{field.name}: was {getattr(before, field.name)!r}, now {getattr(now, field.name)!r}"
            for field in fields(RunState)
            if field.name != "version"
            and not _same(field.name, getattr(before, field.name), getattr(now, field.name))
        ]
        if differing:
            raise InputError(
                f"{self.root}: this folder holds a run started with other settings ({'; '.join(differing)}). "
                "Give the same settings to resume it, or another output_dir to start anew"
            )


def _same(name: str, before: Any, now: Any) -> bool:
    """Whether a setting is what it was; one folder may be written in several ways."""
    if name == "model_source" and before != now and os.path.isdir(before) and os.path.isdir(now):
        return os.path.samefile(before, now)
    return bool(before == now)


def _lock(file: TextIO, limit_s: float) -> bool:
    """Take a file's lock; whether that could be done within `limit_s` seconds."""
    deadline = time.monotonic() + limit_s
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(_PAUSE_S)


def write_text(path: Path, content: str) -> None:
    """Write a text file whole or not at all."""
    with replacing(path) as file:
        file.write(content.encode())
