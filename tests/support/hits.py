"""A run that something keeps going, a job on Slurm or ranks of this machine, and what can be done to it."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.logs import read_log
from dist_trainer.rundir import RunFolder
from tests.support.runs import ROOT, environment
from tests.support.slurm import Cluster, cluster, missing

_ENDED = ("FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY")
Hit = Callable[[random.Random], bool]


class Runner(Protocol):
    """What keeps the run going; each of `hits` says whether there was something to hit."""

    hits: dict[str, Hit]
    given_up: int  # how often nothing but a user would have started it again

    @property
    def starts(self) -> int:
        """How often its ranks were started."""

    def goes_on(self) -> bool:
        """Keep it going; whether it has still to end."""


class OnSlurm:
    """A job of slurm/full_ft.sh, submitted again where it was given up."""

    def __init__(self, slurm: Cluster, config: Path, run: RunFolder, size: int) -> None:
        self._slurm, self._config, self._run, self._size = slurm, config, run, size
        self.given_up = 0
        self._job = self._submit()
        more = {"node killed": self._kill_node, "job told to save (USR2)": self._tell}
        self.hits = _common_hits(config, run) | more

    @property
    def starts(self) -> int:
        """As the run's log of jobs has it."""
        return sum(record["event"] == "began" for record in read_log(self._run.jobs))

    def goes_on(self) -> bool:
        self._slurm.start_requeued()
        state = self._slurm.state(self._job)
        if state in _ENDED:
            self.given_up += 1
            self._job = self._submit()
        return state != "COMPLETED"

    def _submit(self) -> str:
        size = (f"--nodes={self._size}", "--ntasks-per-node=1", "--cpus-per-task=1", "--time=60")
        words = (*size, f"--output={self._config.parent}/job.out", "slurm/full_ft.sh", str(self._config))
        return self._slurm.submit(*words, cwd=ROOT, env=environment())

    def _kill_node(self, draw: random.Random) -> bool:
        nodes = self._slurm.hosts(self._job) if _ranks(self._config) else []
        if not nodes:
            return False
        node = draw.choice(nodes)
        self._slurm.kill_node(node)
        self._slurm.start_node(node)
        return True

    def _tell(self, draw: random.Random) -> bool:
        if not _ranks(self._config):
            return False
        self._slurm.call("scancel", "--signal=USR2", self._job)
        return True


class Locally:
    """ltx-launch local, started again as often as it ends with another code than 0."""

    def __init__(self, config: Path, run: RunFolder, size: int) -> None:
        self._config, self._size = config, size
        self.given_up = self.starts = 0
        self._launch = self._start()
        self.hits = _common_hits(config, run) | {"launcher told to save (USR2)": self._tell}

    def goes_on(self) -> bool:
        code = self._launch.poll()
        if code:
            self._launch = self._start()
        return code != 0

    def end(self) -> None:
        """Kill what still runs."""
        for process in (*_ranks(self._config), *([self._launch.pid] if self._launch.poll() is None else [])):
            os.kill(process, signal.SIGKILL)
        self._launch.wait()

    def _start(self) -> subprocess.Popen[bytes]:
        self.starts += 1
        command = [sys.executable, "-m", "launch", "local", str(self._config), "-n", str(self._size)]
        with (self._config.parent / "job.out").open("ab") as out:
            return subprocess.Popen(command, env=environment(), cwd=ROOT, stdout=out, stderr=out)

    def _tell(self, draw: random.Random) -> bool:
        if not _ranks(self._config):
            return False
        self._launch.send_signal(signal.SIGUSR2)
        return True


def _common_hits(config: Path, run: RunFolder) -> dict[str, Hit]:
    """Those that need no Slurm."""

    def signalled(number: int) -> Hit:
        def hit(draw: random.Random) -> bool:
            found = _ranks(config)
            with suppress(ProcessLookupError):
                if found:
                    os.kill(draw.choice(found), number)
                    return True
            return False

        return hit

    def damaged(draw: random.Random) -> bool:
        """The newest checkpoint, where there is another; a rank is killed, so that it is read."""
        complete = complete_steps(run.checkpoints)
        if len(complete) < 2 or not _ranks(config):
            return False
        with suppress(OSError):  # a save has put it away
            folder = run.checkpoints / (run.checkpoints / "latest").read_text().strip()
            with draw.choice(sorted(folder.glob("*.safetensors"))).open("r+b") as file:
                file.seek(os.fstat(file.fileno()).st_size // 2)
                file.write(draw.randbytes(64))
        return signalled(signal.SIGKILL)(draw)

    return {
        "rank killed": signalled(signal.SIGKILL),
        "rank told to end (TERM)": signalled(signal.SIGTERM),
        "rank frozen (STOP)": signalled(signal.SIGSTOP),
        "checkpoint damaged, rank killed": damaged,
    }


def _ranks(config: Path) -> list[int]:
    """Process ids of the run's ranks, wherever they run."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if "python" in words[0] and "dist_trainer.train" in words and str(config) in words:
                found.append(int(path.parent.name))
    return sorted(found)


@contextmanager
def running(config: Path, run: RunFolder, size: int) -> Iterator[Runner]:
    """Start the run of a config on `size` ranks: one per node of a Slurm, or all here where there can be none."""
    if missing():
        local = Locally(config, run, size)
        try:
            yield local
        finally:
            local.end()
        return
    with cluster(config.parent / "cluster", nodes=size + 1) as slurm:
        yield OnSlurm(slurm, config, run, size)
