"""DeepSpeed's launcher on two hosts, over ssh and under srun: a run that is killed, told to stop, and comes back."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.logs import read_log
from dist_trainer.rundir import RunFolder
from shards.dataset.opened import Dataset
from tests.support import slurm as slurms
from tests.support import ssh
from tests.support.audit import assert_same_run
from tests.support.forked import train
from tests.support.runs import ONE_PACK, ROOT, environment, free_port, tiny_config, write_config
from tests.support.slurm import Cluster

DEEPSPEED = Path(sys.executable).parent / "deepspeed"
STEPS, INTERVAL = 1000, 8
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
_START_S, _END_S, _LEAVE_S = 240.0, 180.0, 60.0

pytestmark = pytest.mark.timeout(900)


class Run:
    """A tiny run of many steps and what is known of it from its folder."""

    def __init__(self, root: Path, model: Path, data: Path) -> None:
        self.root, self.folder = root, root / "run"
        self._model, self._data = model, data
        self.config = self._config("run", STEPS)

    @property
    def steps(self) -> int:
        """Steps that were trained."""
        path = RunFolder(self.folder).metrics
        return path.read_text().count("\n") if path.is_file() else 0

    @property
    def saved(self) -> int:
        """Step of the newest checkpoint."""
        return max(complete_steps(RunFolder(self.folder).checkpoints), default=0)

    def trains(self, before: int) -> bool:
        """Whether steps after step `before` are trained, some time after a checkpoint."""
        return self.steps > before + 2 and self.saved > 0

    def until(self, true: Callable[[], bool], printed: Callable[[], str]) -> None:
        deadline = time.monotonic() + _START_S
        while not true():
            assert time.monotonic() < deadline, f"{self.steps} steps\n{printed()}"
            time.sleep(0.02)

    def assert_same_as_undisturbed(self, steps: int) -> None:
        """That it is, to the bit, the run of two ranks on one host that nobody disturbed."""
        train(2, self._config("whole", steps, seed=7), logs=self.root / "logs_whole")
        assert_same_run(self.folder, self.root / "whole")

    def _config(self, name: str, steps: int, **more: int) -> Path:
        blocks: dict[str, Any] = {
            "optimization": {"steps": steps, "learning_rate": 1e-3},
            "checkpoints": {"interval": INTERVAL},
            "health": {"preflight": False},
            **ONE_PACK,
            **more,
        }
        described = tiny_config(self._model, self._data, self.root / name, **blocks)
        return write_config(self.root / f"{name}.yaml", described)


@dataclass(frozen=True)
class Launch:
    """How a launch of a run over ssh ended: its exit code, what it printed, the steps trained, the newest checkpoint's
    step, and what was left running on each host."""

    run: Run
    code: int
    printed: str
    steps: int
    saved: int
    left: dict[str, list[str]]


class OverSsh:
    """`deepspeed --hostfile` on two hosts with one rank each."""

    def __init__(self, there: ssh.Hosts, run: Run) -> None:
        self.hosts, self.run = there, run
        self._hostfile = run.root / "hosts.txt"
        self._hostfile.write_text("".join(f"{name} slots=1\n" for name in there.names))
        # What the launcher sets on the hosts; of its own environment it takes little along.
        self._environment = run.root / "deepspeed_env"
        self._environment.write_text("OMP_NUM_THREADS=1\nDS_ACCELERATOR=cpu\n")

    def launch(self, disturb: Callable[[subprocess.Popen[bytes]], object]) -> Launch:
        """Start it, disturb it after a step that was not there before, and wait for its end."""
        output, before = self.run.root / "printed", self.run.steps
        command = [str(DEEPSPEED), "--hostfile", str(self._hostfile), "--master_port", str(free_port())]
        trainer = ["--module", "dist_trainer.train", str(self.run.config), "seed=7"]
        environ = environment(DS_ENV_FILE=str(self._environment))
        process = self.hosts.start([*command, *trainer], environ, output, cwd=ROOT)
        try:
            self.run.until(lambda: self.run.trains(before) or process.poll() is not None, output.read_text)
            disturb(process)
            code = process.wait(_END_S)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        left = self._left()
        return Launch(self.run, code, output.read_text(), self.run.steps, self.run.saved, left)

    def rank(self, host: str) -> int:
        """Process id of the rank on a host."""
        (found,) = self.hosts.processes(host, "-m dist_trainer.train")
        return found

    def _left(self) -> dict[str, list[str]]:
        """Command lines of what runs on each host, once nothing does or all had time to leave."""
        deadline = time.monotonic() + _LEAVE_S
        while True:
            left = {
                name: list(self.hosts.processes(name, "dist_trainer").values()) for name in self.hosts.names
            }
            if not any(left.values()) or time.monotonic() > deadline:
                return left
            time.sleep(0.2)


def launch_over_ssh(run: Run) -> dict[str, Launch]:
    """Three launches of one run: a rank is killed, the launcher is told to end, the run is told to stop."""
    with ssh.hosts(run.root / "hosts", "host1", "host2") as there:
        over = OverSsh(there, run)
        return {
            "killed": over.launch(lambda process: os.kill(over.rank("host2"), signal.SIGKILL)),
            "told": over.launch(lambda process: process.terminate()),
            "stopped": over.launch(lambda process: (run.folder / "STOP").touch()),
        }


@pytest.fixture(scope="module")
def ways(
    model_folder: Path,
    paired_dataset: Dataset,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
) -> Iterator[dict[str, Future[Any]]]:
    """Both ways at once, where this machine has what they need: launchers wait for each other a good deal."""

    def run(name: str) -> Run:
        return Run(tmp_path_factory.mktemp(name), model_folder, Path(paired_dataset.root))

    begun: dict[str, Future[Any]] = {}
    with ThreadPoolExecutor(2) as pool:
        if not ssh.missing():
            begun["ssh"] = pool.submit(launch_over_ssh, run("ssh"))
        if not slurms.missing():
            begun["srun"] = pool.submit(launch_under_srun, request.getfixturevalue("slurm"), run("srun"))
        yield begun


@pytest.fixture(scope="module")
def launches(ways: dict[str, Future[dict[str, Launch]]]) -> dict[str, Launch]:
    if reason := ssh.missing():
        pytest.skip(reason)
    return ways["ssh"].result()


def test_over_ssh_a_killed_rank_ends_all_hosts_and_is_named(launches: dict[str, Launch]) -> None:
    killed = launches["killed"]
    assert killed.code not in (0, 2, 85), killed.printed
    assert "rank 1 (host2)" in killed.printed
    assert not any(killed.left.values()), killed.left


def test_over_ssh_a_launcher_that_is_told_to_end_lets_the_run_save(launches: dict[str, Launch]) -> None:
    told = launches["told"]
    assert told.code != 0
    assert told.saved == told.steps > launches["killed"].saved, told.printed
    assert not any(told.left.values()), told.left


def test_over_ssh_a_file_stops_the_run_cleanly(launches: dict[str, Launch]) -> None:
    stopped = launches["stopped"]
    assert stopped.code == 0, stopped.printed
    assert stopped.saved == stopped.steps > launches["told"].saved
    assert not any(stopped.left.values()), stopped.left


def test_over_ssh_nothing_of_it_shows(launches: dict[str, Launch]) -> None:
    stopped = launches["stopped"]
    stopped.run.assert_same_as_undisturbed(stopped.saved)


class UnderSrun:
    """A job of slurm/deepspeed.sh on two nodes with one rank each."""

    def __init__(self, slurm: Cluster, run: Run) -> None:
        self.slurm, self.run = slurm, run
        size = ("--nodes=2", "--gpus-per-node=1", "--cpus-per-task=1", "--time=20")
        words = (*size, f"--output={run.root}/job.out", "slurm/deepspeed.sh", str(run.config), "seed=7")
        self.job = slurm.submit(*words, cwd=ROOT, env=environment())

    def printed(self) -> str:
        """What the batch script and the launchers of its nodes printed."""
        logs = [self.run.root / "job.out", *sorted(RunFolder(self.run.folder).ranks.glob("*.log"))]
        return "\n".join(f"--- {log.name}\n{log.read_text()}" for log in logs if log.is_file())

    def until_trains(self) -> None:
        """Wait until a start has trained a step that none had before."""
        before = self.run.steps
        self.slurm.wait(self.job, *ENDED, limit=_START_S, until=lambda: self.run.trains(before))
        assert self.run.trains(before), self.printed()

    def until_ends(self, times: int) -> None:
        """Wait until so many starts have ended."""
        self.slurm.wait(self.job, *ENDED, limit=_END_S, until=lambda: len(self.ends()) >= times)
        assert len(self.ends()) == times, self.printed()

    def ends(self) -> list[dict[str, Any]]:
        """How each start ended, as the run's log of jobs has it."""
        return [record for record in read_log(RunFolder(self.run.folder).jobs) if record["event"] == "ended"]

    def processes(self, *variables: str) -> list[int]:
        """The job's processes that have these variables."""
        wanted, found = {word.encode() for word in (f"SLURM_JOB_ID={self.job}", *variables)}, []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with suppress(OSError):
                if wanted <= set(path.read_bytes().split(b"\0")):
                    found.append(int(path.parent.name))
        return found


def launch_under_srun(slurm: Cluster, run: Run) -> UnderSrun:
    """Three starts of one job: a rank is killed, the job is told to save, the run is told to stop."""
    made = UnderSrun(slurm, run)
    made.until_trains()
    for rank in made.processes("RANK=1"):
        os.kill(rank, signal.SIGKILL)
    made.until_ends(1)
    made.until_trains()
    # What --signal does before the time limit.
    slurm.call("scancel", "--signal=USR2", made.job)
    made.until_ends(2)
    made.until_trains()
    (run.folder / "STOP").touch()
    assert slurm.wait(made.job, *ENDED, limit=_END_S) == "COMPLETED", made.printed()
    return made


@pytest.fixture(scope="module")
def job(slurm: Cluster, ways: dict[str, Future[UnderSrun]]) -> UnderSrun:
    return ways["srun"].result()


def test_under_srun_a_killed_rank_ends_the_launchers_and_the_job_comes_back(job: UnderSrun) -> None:
    killed = job.ends()[0]
    assert killed["code"] not in (0, 2, 85), job.printed()
    assert killed["again"]
    # Launchers that died of the signal that ends the step would leave nobody to wait for this word.
    assert "rank 1 (node" in killed["cause"], job.printed()


def test_under_srun_a_signal_saves_and_the_launchers_end_with_the_code_to_come_back(job: UnderSrun) -> None:
    killed, told, _ = job.ends()
    assert (told["code"], told["again"]) == (85, True), job.printed()
    # Of the launcher, which lived longer than its rank.
    assert "exits with return code = 85" in job.printed()
    assert told["step"] == told["reached"] > killed["step"]


def test_under_srun_a_file_ends_the_job_and_leaves_no_process(job: UnderSrun) -> None:
    _, told, stopped = job.ends()
    assert (stopped["code"], stopped["again"]) == (0, False)
    assert stopped["step"] == stopped["reached"] > told["step"]
    assert not job.processes()


def test_under_srun_nothing_of_it_shows(job: UnderSrun) -> None:
    job.run.assert_same_as_undisturbed(job.run.saved)
