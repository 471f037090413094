"""What is asked of a run from outside: to save, or to stop. All ranks agree on it once a step, then act together.

A signal (USR1, USR2 or TERM) and the end of the job's time ask to stop and come back; a file STOP in the run's folder
asks to stop for good, a file SAVE to save and go on. A handler only sets a flag: saving takes all ranks.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from dist_trainer.rundir import RunFolder
from shards.errors import InputError

if TYPE_CHECKING:
    from dist_trainer.dist import Gathering

SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
ENDS_AT = "LTX_JOB_ENDS_AT"
COME_BACK_CODE = 85  # the exit code that asks a batch script to queue the job again
STOP_NAME, SAVE_NAME = "STOP", "SAVE"
_TIMES = 2.0  # the slowest step and the slowest save of late
_RECENT = 50  # the first steps are slow, and should not count for ever
_UNTIMED_SAVE_S = 150.0  # of a save before the first one
_MARGIN_S = 30.0  # for the launcher and the batch script
_PATIENCE_S = 10.0  # for work that is nearly done; Slurm kills 30 s after it has told a job to end


class Wish(IntEnum):
    """What is asked of the run; where ranks were asked for different things, the greatest counts."""

    NONE = 0
    SAVE = 1
    COME_BACK = 2
    STOP = 3


class Requests:
    """What this rank has been asked. Every rank takes signals; rank 0 alone looks at files and the clock.

    `ends_at` is when the job will be killed, in seconds since 1970; None where that is not known.
    """

    def __init__(self, folder: Path, is_main: bool, ends_at: float | None = None) -> None:
        self._stop, self._save = folder / STOP_NAME, folder / SAVE_NAME
        self._is_main, self._ends_at = is_main, ends_at
        self._signals: list[int] = []
        self._training = False
        self._began = time.time()
        self._steps_s: deque[float] = deque(maxlen=_RECENT)
        self._saves_s: deque[float] = deque(maxlen=_RECENT)
        self._warned = False

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals inside the block, as often as they come; outside they do what they did before.

        Until `begin` there is nothing to save, and a signal ends the process at once with COME_BACK_CODE.
        """
        before = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def begin(self) -> None:
        """From here on a signal waits for the end of the step."""
        self._training = True

    def stepped(self, seconds: float) -> None:
        """Take note of how long a step took."""
        self._steps_s.append(seconds)

    def saved(self, seconds: float) -> None:
        """Take note of how long a save took, in this job or the one before."""
        self._saves_s.append(seconds)

    def answered(self) -> None:
        """What SAVE asks for is done, or cannot be done."""
        if self._is_main:
            with suppress(OSError):
                self._save.unlink(missing_ok=True)

    @property
    def lead_s(self) -> float:
        """Seconds before the job's end at which the run begins to stop."""
        step_s, save_s = max(self._steps_s, default=0.0), max(self._saves_s, default=_UNTIMED_SAVE_S)
        return _TIMES * (step_s + save_s) + _MARGIN_S

    def warning(self) -> str:
        """In one line, once, that the job's time is short for its steps and saves; "" where it is not."""
        # Before a save is timed, the lead is a guess.
        if self._warned or self._ends_at is None or not self._saves_s:
            return ""
        whole, lead = self._ends_at - self._began, self.lead_s
        if whole >= 2 * lead:
            return ""
        self._warned = True
        left = (
            "it comes back after its first step"
            if whole < lead
            else f"{whole - lead:.0f} s are left to train"
        )
        return (
            f"warning: the job had {whole:.0f} s when this run began to load; steps and saves here want {lead:.0f} s "
            f"before the job's end, so {left}: ask for more time"
        )

    @property
    def is_late(self) -> bool:
        """Whether a look at the model must end for the job's end: before the first step there is nothing to save."""
        return self._is_main and self._left_s() < (self.lead_s if self._steps_s else _MARGIN_S)

    def wish(self) -> Wish:
        """What this rank asks for now."""
        if self._is_main and _is_there(self._stop):
            return Wish.STOP
        if self._signals:
            return Wish.COME_BACK
        if self._is_main and self._left_s() < self.lead_s:
            # A first save tells how long one takes: perhaps there is time for more steps.
            return Wish.COME_BACK if self._saves_s else Wish.SAVE
        return Wish.SAVE if self._is_main and _is_there(self._save) else Wish.NONE

    def needless(self, folder: RunFolder, steps: int, gathering: Gathering) -> str:
        """Why this launch has nothing to do: DONE says that all `steps` are trained, or STOP is there. "": it has.

        All ranks ask together, and hear what rank 0 sees.
        """
        why = ""
        if self._is_main:
            done = folder.steps_done()
            if done >= steps:
                why = f"{folder.done}: {done} steps are trained; raise optimization.steps to go on"
            elif _is_there(self._stop):
                why = f"{self._stop} is there: remove it to go on"
        return gathering.share("what to do", why)

    def reason(self, wish: Wish) -> str:
        """Why, in words, for rank 0 to say."""
        left = self._left_s()
        if wish is Wish.STOP or (wish is Wish.SAVE and _is_there(self._save)):
            return f"{self._stop if wish is Wish.STOP else self._save} is there"
        if wish is Wish.SAVE:
            return f"the job ends in {left:.0f} s, and no save has been timed yet"
        if not self._signals:
            return f"the job ends in {left:.0f} s" if left < self.lead_s else "another rank was told to"
        name = signal.Signals(self._signals[0]).name
        if left < self.lead_s:
            return f"{name} came, {left:.0f} s before the job's end; steps and saves here want {self.lead_s:.0f} s"
        return f"{name} came"

    def _left_s(self) -> float:
        return float("inf") if self._ends_at is None else self._ends_at - time.time()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if not self._training:
            with suppress(OSError):  # nobody may read any more
                os.write(
                    sys.stderr.fileno(), f"{signal.Signals(number).name} before the first step\n".encode()
                )
            os._exit(COME_BACK_CODE)
        self._signals.append(number)


def agreed(requests: Requests, gathering: Gathering) -> Wish:
    """The greatest wish of all ranks, alike on every rank: for work between steps, such as a save.

    All ranks ask together. Raises MissingRanks when one does not come.
    """
    wishes = gathering.collect("wish", requests.wish().name)
    return Wish[gathering.share("wish", max((Wish[name] for name in wishes), default=Wish.NONE).name)]


class ToldToStop(Exception):
    """The `wish` to stop came, and the work at hand takes too long to be ended before it."""

    def __init__(self, wish: Wish, reason: str) -> None:
        super().__init__(reason)
        self.wish = wish


def heeding(requests: Requests) -> Callable[[], None]:
    """What long work of rank 0 alone calls now and then: it raises ToldToStop, with the reason, some seconds after a
    stop was asked for.
    """
    told: list[float] = []

    def heed() -> None:
        if (wish := requests.wish()) < Wish.COME_BACK:
            return
        told.append(time.monotonic())
        if told[-1] - told[0] >= _PATIENCE_S:
            raise ToldToStop(wish, requests.reason(wish))

    return heed


def _is_there(path: Path) -> bool:
    """Whether a file is there, as far as its file system answers."""
    try:
        return path.exists()
    except OSError:
        return False


def ends_at(environ: Mapping[str, str]) -> float | None:
    """When the job will be killed, as its batch script says in LTX_JOB_ENDS_AT (seconds since 1970)."""
    text = environ.get(ENDS_AT, "")
    try:
        return float(text) if text else None
    except ValueError:
        raise InputError(f"environment: {ENDS_AT}={text} is not a time in seconds since 1970") from None
