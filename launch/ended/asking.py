"""Slurm's commands, asked with a limit."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import NamedTuple

_CALL_S = 60.0
# What Slurm's commands say of a controller that is away, and of one that is busy.
LATER = ("Unable to contact", "Socket timed out", "Zero Bytes")
# Users may have squeue and sacct write times in other ways, for all their shells.
_PLAIN_TIMES = {"SLURM_TIME_FORMAT": "standard"}


class Answer(NamedTuple):
    """A command's exit code, what it printed, and what it said of errors, in one line."""

    code: int
    printed: str
    error: str

    @property
    def later(self) -> bool:
        """Whether the controller did not answer, and may do so later."""
        return self.code != 0 and any(one in self.error for one in LATER)


def ask_slurm(*command: str) -> Answer:
    """What one of Slurm's commands answers; one that cannot be run, or takes too long, has failed with the cause."""
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=_CALL_S,
            check=False,
            env=os.environ | _PLAIN_TIMES,
            preexec_fn=_live_on,
        )
    except subprocess.TimeoutExpired:
        return Answer(1, "", f"Unable to contact Slurm within {_CALL_S:g} s")
    except OSError as error:
        return Answer(1, "", str(error))
    said = " ".join(done.stderr.split())
    failed = f"exit code {done.returncode}" if done.returncode else ""
    return Answer(done.returncode, done.stdout, said or failed)


def _live_on() -> None:
    """Slurm tells all processes of a job that is queued again to end; this one has to do its part first."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
