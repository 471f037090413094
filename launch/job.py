"""What a task of a queued job runs: a trainer with its supervisor, or a command. submitit pickles these."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from submitit.core.utils import DelayedSubmission

from dist_trainer.rundir import RunFolder
from dist_trainer.stop import SIGNALS
from launch.local import end_with_parent
from launch.supervisor import supervise

_UNTIL_ENDED_S = 900.0


@dataclass(frozen=True)
class Training:
    """One run: `run` is its folder, `snapshot` holds the code and config that are trained."""

    run: str
    snapshot: str

    def __call__(self) -> None:
        """Train this task's share. Returns when that is done; else the process ends with the job's exit code."""
        supervise(RunFolder(Path(self.run)), Path(self.snapshot))

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again. Saving is the trainer's, and has been done by then."""
        return DelayedSubmission(self)


@dataclass(frozen=True)
class Command:
    """A command of a data stage, as words. It keeps what is complete, so it may be ended and begun again."""

    words: tuple[str, ...]

    def __call__(self) -> None:
        """Run it; a bad exit code becomes this process's own."""
        code = subprocess.Popen(self.words, preexec_fn=end_with_parent).wait()
        if -code in SIGNALS:
            # Slurm signals every process of a task; it ends this one too, or submitit queues the job again.
            time.sleep(_UNTIL_ENDED_S)
        if code:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again before the time ends."""
        return DelayedSubmission(self)
