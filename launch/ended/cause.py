"""What a job ended of, from what its ranks and srun left in the run's folder."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.logs import read_log
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import COME_BACK_CODE
from launch.ended.tail import tail

_MARK = "--- "
_LAST_LINES, _MOST_ERRORS = 5, 5
_ENDED = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (.+)")
_EXITED = re.compile(r"Exited with exit code (\d+)")
_LOST_NODE = re.compile(r"srun: error: (Node failure on \S+)")
TOO_EARLY = "told to end before its first step, with nothing to save; if its time was over, ask for more"
_SAVED = "told to end, and saved"
_ASKED = ("User defined signal", "Terminated")
_BAD_INPUT, _CRASH = 2, 1


@dataclass(frozen=True)
class Ending:
    """How a job ended: the exit code that counts, why in one line, and what to show of the ranks' logs."""

    code: int
    cause: str
    shown: tuple[str, ...]


def srun_log(folder: RunFolder, job: str) -> Path:
    """What srun itself said of this start of a job."""
    return folder.root / "logs" / f"{job}.srun.log"


def mark(folder: RunFolder, job: str, restart: int) -> None:
    """Part this start of a job from those before it, in the logs that its ranks go on to write."""
    for path in folder.ranks.glob(f"{job}_*.log"):
        mark_log(path, job, restart)


def mark_log(path: Path, job: str, restart: int) -> None:
    """The same in the log of one rank."""
    with path.open("a", encoding="utf-8") as log:
        log.write(f"{_MARK}job {job}, start {restart + 1}, {time.strftime('%Y-%m-%d %H:%M:%S')}\n")


def ending(folder: RunFolder, job: str, code: int) -> Ending:
    """How this start of a job ended, where srun's exit code is `code`.

    srun gives the greatest code of all ranks, and ends the others when one has ended badly. What counts is the first,
    but that bad input was found counts more.
    """
    said = _tail(srun_log(folder, job))
    errors = list(_errors(folder, job))
    shown = tuple(errors[:_MOST_ERRORS]) or tuple(_last_lines(folder.ranks / f"{job}_0.log"))
    if code == 0:
        return Ending(0, "", shown)
    ends = [match for line in said if (match := _ENDED.match(line))]
    host, ranks, how = (ends[0][1], ends[0][2], ends[0][3]) if ends else ("", "", "")
    if any(end[3] == f"Exited with exit code {_BAD_INPUT}" for end in ends):
        code = _BAD_INPUT  # of whichever rank found it; the others end because of it
    elif exited := _EXITED.match(how):
        code = int(exited[1])
    elif how.startswith(_ASKED):
        code = COME_BACK_CODE  # before the rank could listen
    elif how and code in (_BAD_INPUT, COME_BACK_CODE):
        code = _CRASH
    if code == COME_BACK_CODE:
        return Ending(code, _SAVED if _has_saved(folder, job) else TOO_EARLY, shown)
    if lost := [match[1] for line in said if (match := _LOST_NODE.match(line))]:
        return Ending(code, lost[0], shown)
    if how and not _EXITED.match(how):
        return Ending(code, f"rank {ranks} ({host}): {how}", shown)
    if errors:
        return Ending(code, errors[0].removeprefix("error: "), shown)
    spoken = [line.removeprefix("srun: error: ") for line in said if line.startswith("srun: error: ")]
    return Ending(code, spoken[0] if spoken else f"exit code {code}, and no rank said why", shown)


def _has_saved(folder: RunFolder, job: str) -> bool:
    """Whether the newest checkpoint is another than when this start of a job began."""
    began = [
        one for one in read_log(folder.jobs) if one.get("event") == "began" and str(one.get("job")) == job
    ]
    return not began or began[-1].get("step") != max(complete_steps(folder.checkpoints), default=0)


def _errors(folder: RunFolder, job: str) -> Iterator[str]:
    """The lines with which ranks explain an error, by rank."""
    for path in sorted(folder.ranks.glob(f"{job}_*.log"), key=lambda path: (len(path.name), path.name)):
        yield from (line for line in _tail(path) if line.startswith("error:"))


def _last_lines(path: Path) -> list[str]:
    return _tail(path)[-_LAST_LINES:]


def _tail(path: Path) -> list[str]:
    """The last lines of a log, after the last mark."""
    lines = [line.rstrip("\r\n") for line in tail(path)]
    marks = [number for number, line in enumerate(lines) if line.startswith(f"{_MARK}job ")]
    return lines[marks[-1] + 1 :] if marks else lines
