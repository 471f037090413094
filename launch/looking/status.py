"""How a run is doing, read from its folder and from Slurm while it may be written. Imports without torch."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dist_trainer.checkpoints.kept import META, complete_steps, name_of
from dist_trainer.config import load
from dist_trainer.logs import read_log
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import COME_BACK_CODE, STOP_NAME
from launch.ended.after import bad_hosts
from launch.ended.cause import TOO_EARLY
from launch.ended.requeue import Place
from launch.ended.squeue import places
from launch.ended.tail import recent_steps
from launch.runs import is_held, jobs_of, settings_of
from shards.errors import InputError

_RECENT_STEPS = 20
_TO_GO_ON = "to go on: `ltx-launch resume`"


@dataclass(frozen=True)
class Status:
    """How a run is doing. Times are seconds since 1970, None where there is none or nobody knows.

    `state`: Slurm's word of a job that waits, runs or is cancelled; else RUNNING, DONE, STOPPED, SAVED (told to end, it
    may go on), FAILED, ENDED. `detail`: why it waits, or what it ended of and whether it comes back. `job`: its number,
    or "local". `restarts`: how often the job was queued again. `step` of `steps`, `loss` of that step; `tokens_per_s`
    and `step_s` over the last 20 steps of the last start, None while a job waits; `eta_s`: seconds left. `skipped`,
    `replaced`: how many steps and samples.
    """

    run: str
    state: str
    detail: str
    job: str
    restarts: int
    nodes: str
    since: str
    ends: str
    step: int
    steps: int | None
    loss: float | None
    tokens_per_s: float | None
    step_s: float | None
    eta_s: float | None
    checkpoint: int | None
    checkpoint_time: float | None
    skipped: int
    replaced: int
    bad_nodes: tuple[str, ...]
    stop: bool
    done: bool
    error: str

    @property
    def lives(self) -> bool:
        """Whether something trains in the folder now."""
        return self.state in _ALIVE

    def record(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


_ALIVE = ("RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "SIGNALING")


def statuses(folders: Sequence[Path]) -> list[Status]:
    """How these runs are doing. Slurm is asked once. Raises InputError when it does not answer."""
    runs = [RunFolder(folder) for folder in folders]
    newest = {job for run in runs for job in jobs_of(run)[-1:]}
    found = places(newest)
    return [_status(run, found) for run in runs]


def _status(run: RunFolder, found: Mapping[str, Place]) -> Status:
    records = read_log(run.jobs)
    job = next(iter(jobs_of(run)[-1:]), "")
    own = [record for record in records if record.get("job") == job]
    began, ended, place = _newest(own, "began"), _newest(records, "ended"), found.get(job)
    stop, steps = (run.root / STOP_NAME).exists(), _steps(run)
    recent = recent_steps(run.metrics, _RECENT_STEPS)
    step = int(recent[-1]["step"]) if recent else 0
    timed = [] if place and place.waits else _of_start(recent, began, run.metrics)
    done = steps is not None and 0 < steps <= run.steps_done()
    state, detail = _state(run, place, _end_of(own), stop, done)
    step_s = _mean(timed, "time/step_s")
    lives = state in _ALIVE
    if lives and not timed:
        detail = "no step yet since it was started"
    checkpoint = max(complete_steps(run.checkpoints), default=None)
    told = ended.get("code", 0) not in (0, COME_BACK_CODE) or ended.get("cause") == TOO_EARLY
    return Status(
        run=str(run.root),
        state=state,
        detail=detail,
        job=job,
        restarts=_restarts(began, place),
        nodes=place.nodes if place and place.nodes else ",".join(began.get("nodes", [])),
        since=place.start if place else _written(began.get("time")),
        ends=place.end if place and place.runs else "",
        step=step,
        steps=steps,
        loss=_number(recent[-1].get("train/loss")) if recent else None,
        tokens_per_s=_speed(timed),
        step_s=step_s,
        eta_s=max(0, steps - step) * step_s if lives and steps is not None and step_s is not None else None,
        checkpoint=checkpoint,
        checkpoint_time=None
        if checkpoint is None
        else _time_of(run.checkpoints / name_of(checkpoint) / META),
        skipped=len(read_log(run.skipped)),
        replaced=len(read_log(run.replaced)),
        bad_nodes=bad_hosts(run),
        stop=stop,
        done=done,
        error=str(ended.get("cause", "")) if told else "",
    )


def _state(
    run: RunFolder, place: Place | None, ended: Mapping[str, Any], stop: bool, done: bool
) -> tuple[str, str]:
    """Of a run in one word, and why."""
    if place and (place.waits or place.runs):
        return place.state, place.reason if place.waits else ""
    if is_held(run):
        return "RUNNING", ""
    if done:
        return "DONE", ""
    if stop:
        return "STOPPED", f"{STOP_NAME} is there"
    if place and place.state == "CANCELLED":
        return place.state, f"it does not come back; {_TO_GO_ON}"
    if ended:
        return {0: "ENDED", COME_BACK_CODE: "SAVED"}.get(ended.get("code", 0), "FAILED"), _how(ended, place)
    if place:
        return place.state, place.reason
    return "ENDED", "nobody said how" if run.state.is_file() else "it has not begun"


def _how(ended: Mapping[str, Any], place: Place | None) -> str:
    """What a start ended of, and what becomes of its job, which neither waits nor runs as far as Slurm says."""
    cause, why = str(ended.get("cause", "")), str(ended.get("why", ""))
    if not ended.get("again"):
        return f"{cause}; it does not come back: {why}" if cause and why else cause or why
    if place is None:
        return f"{cause}; it was to come back, but nothing is known of its job here; {_TO_GO_ON}"
    return f"{cause}; it was to come back, but Slurm says {place.state}; {_TO_GO_ON}"


def _end_of(own: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """How the last start of a job ended, of its records; empty where that was not noted."""
    told = [record for record in own if record.get("event") in ("began", "ended")]
    return told[-1] if told and told[-1]["event"] == "ended" else {}


def _of_start(
    recent: Sequence[dict[str, Any]], began: Mapping[str, Any], metrics: Path
) -> list[dict[str, Any]]:
    """Those of the last steps that the last start trained, which began with the checkpoint of step `began["step"]`.

    Until it trains, what an earlier start trained past that checkpoint is there still.
    """
    if "step" not in began:
        return list(recent)
    if (_time_of(metrics) or 0.0) < float(began.get("time", 0.0)):
        return []
    return [record for record in recent if int(record["step"]) > int(began["step"])]


def _newest(records: Sequence[dict[str, Any]], event: str) -> dict[str, Any]:
    return next((record for record in reversed(records) if record.get("event") == event), {})


def _restarts(began: Mapping[str, Any], place: Place | None) -> int:
    """How often the job was queued again: one more than its last start says, where it waits for the next."""
    return int(began.get("restart", 0)) + bool(began and place and place.waits)


def _steps(run: RunFolder) -> int | None:
    settings = settings_of(run)
    try:
        return load(settings).optimization.steps if settings else None
    except InputError:
        return None


def _mean(recent: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [value for record in recent if (value := _number(record.get(name))) is not None]
    return sum(values) / len(values) if values else None


def _speed(recent: Sequence[Mapping[str, Any]]) -> float | None:
    """Tokens a second over these steps together."""
    pairs = [
        (_number(record.get("speed/tokens_per_s")), _number(record.get("time/step_s"))) for record in recent
    ]
    whole = [(speed, seconds) for speed, seconds in pairs if speed is not None and seconds is not None]
    spent = sum(seconds for _, seconds in whole)
    return sum(speed * seconds for speed, seconds in whole) / spent if spent else None


def _number(value: Any) -> float | None:
    """A finite number: the loss of a step that was skipped is none."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _time_of(path: Path) -> float | None:
    try:
        return path.stat().st_mtime
    except OSError:  # it was just taken away
        return None


def _written(when: Any) -> str:
    """A time as Slurm writes it."""
    return "" if when is None else time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(float(when)))
