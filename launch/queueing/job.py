"""What a task of a queued job runs: a trainer with its supervisor, or a command. submitit pickles these."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from submitit.core.utils import DelayedSubmission

from dist_trainer.checkpoints.kept import complete_steps, is_of, name_of
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import SIGNALS
from launch.queueing.supervisor import supervise
from launch.session import end_with_parent
from launch.snapshot import CONFIG_NAME

_UNTIL_ENDED_S = 900.0
_TYPED = {"shards": "ltx-shards", "dist_trainer": "ltx-train"}


@dataclass(frozen=True)
class Training:
    """One run: `run` is its folder, `snapshot` holds the code and config that are trained."""

    run: str
    snapshot: str

    def __str__(self) -> str:
        """As it would be typed."""
        return shlex.join(("python", "-m", "dist_trainer.train", str(Path(self.snapshot) / CONFIG_NAME)))

    def __call__(self) -> None:
        """Train this task's share. Returns when that is done; else the process ends with the job's exit code."""
        supervise(RunFolder(Path(self.run)), Path(self.snapshot))

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again. Saving is the trainer's, and has been done by then."""
        return DelayedSubmission(self)


@dataclass(frozen=True)
class Command:
    """A command of a stage: `words` for a module. It keeps what is complete, so it may be ended and begun again.

    `done`: the folder of a run that is to be exported; where it was stopped before its last step, or has exported its
    weights at its end, the command is left out.
    """

    module: str
    words: tuple[str, ...]
    done: str = ""

    def __str__(self) -> str:
        """As it would be typed."""
        return shlex.join((_TYPED[self.module], *self.words))

    def __call__(self) -> None:
        """Run it; a bad exit code becomes this process's own."""
        if self.done and (why := _needless(RunFolder(Path(self.done)))):
            print(why, flush=True)
            return
        # This Python: where the tasks have a container, it is the one inside.
        words = (sys.executable, "-P", "-m", self.module, *self.words)
        code = subprocess.Popen(words, preexec_fn=end_with_parent).wait()
        if -code in SIGNALS:
            # Slurm signals every process of a task; it ends this one too, or submitit queues the job again.
            time.sleep(_UNTIL_ENDED_S)
        if code:
            sys.exit(code if code > 0 else 128 - code)

    def checkpoint(self) -> DelayedSubmission:
        """What submitit queues again before the time ends."""
        return DelayedSubmission(self)


def _needless(run: RunFolder) -> str:
    """Why a run whose job has ended well is not to be exported; empty where it is."""
    if done := run.steps_done():
        # DONE is written after the export.
        exported = run.exports / name_of(done)
        return f"{exported}: written by the training at its end" if exported.is_dir() else ""
    step = max(complete_steps(run.checkpoints), default=0)
    exported = run.exports / name_of(step)
    if is_of(exported, run.checkpoints / name_of(step)):
        return (
            f"{run.root}: stopped after step {step}, whose weights are in {exported} already; to go on: "
            f"ltx-launch resume {run.root}"
        )
    by_hand = f", or export what there is: ltx-train export {run.root}" if step else ""
    return (
        f"{run.root}: stopped after step {step}, so this stage exports nothing; go on, and it exports at its end: "
        f"ltx-launch resume {run.root}{by_hand}"
    )
