"""Who stands over the ranks: signals go on to them, and of how they end the first task makes one ending."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.config import dump, load
from dist_trainer.logs import read_log
from dist_trainer.rundir import RunFolder
from launch.cli import main
from launch.ended.after import Verdict
from launch.queueing import supervisor
from tests.support.programs import stand_ins
from tests.support.runs import ROOT

JOB = "4711"


@pytest.fixture(autouse=True)
def _signals() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in supervisor.SIGNALS}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


class Task:
    """One task of a job whose trainer is a few lines of Python."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self._root, self._patch = RunFolder(root / "run"), root, monkeypatch
        stand_ins(root / "bin", monkeypatch, squeue=f'echo "{JOB}|{JOB}|RUNNING|None||2030-01-01T00:00:00|"')

    def start(self, trainer: str, rank: int = 0, restart: int = 0) -> int:
        """Supervise it; the exit code, 0 where the task returns."""
        package = self._root / "snapshot" / "dist_trainer"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").touch()
        (package / "train.py").write_text(f"import os, signal, sys, time\n{trainer}\n")
        place = {"JOB_ID": JOB, "PROCID": rank, "NTASKS": 2, "JOB_NUM_NODES": 2, "JOB_NODELIST": "node[1-2]"}
        for name, value in {**place, "RESTART_COUNT": restart, "LOCALID": 0, "NODEID": rank}.items():
            self._patch.setenv(f"SLURM_{name}", str(value))
        self._patch.setenv("SLURMD_NODENAME", f"node{rank + 1}")
        self._patch.setenv("SUBMITIT_EXECUTOR", "slurm")
        self._patch.setenv("RANK", "77")
        try:
            supervisor.supervise(self.run, self._root / "snapshot")
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    @property
    def log(self) -> str:
        """What the trainer of the first task printed."""
        return (self.run.ranks / f"{JOB}_0.log").read_text()

    def events(self, event: str) -> list[dict[str, Any]]:
        return [one for one in read_log(self.run.jobs) if one["event"] == event]


@pytest.fixture
def task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Task:
    monkeypatch.setattr(supervisor, "after", lambda run, code, environ: Verdict(False, "as the test says"))
    monkeypatch.setattr(supervisor, "_LOOK_S", 0.1)
    return Task(tmp_path, monkeypatch)


def later(action: Callable[[], object], there: Callable[[], bool]) -> None:
    """Do something once something is there."""

    def wait() -> None:
        deadline = time.monotonic() + 30
        while not there() and time.monotonic() < deadline:
            time.sleep(0.05)
        action()

    threading.Thread(target=wait, daemon=True).start()


def test_the_trainer_runs_the_snapshot_with_slurm_s_marks_alone(task: Task) -> None:
    names = ["PYTHONPATH", "RANK", "LTX_JOB_ENDS_AT"]
    assert (
        task.start(f"print(sys.argv[1], [os.environ.get(name) for name in {names}], sys.flags.safe_path)")
        == 0
    )
    assert f"{task.run.root.parent}/snapshot/config.yaml ['{task.run.root.parent}/snapshot" in task.log
    assert "None, '" in task.log
    ends = time.mktime((2030, 1, 1, 0, 0, 0, 0, 0, -1))
    assert f"'{ends:.0f}'] True" in task.log
    (began,) = task.events("began")
    assert (began["job"], began["nodes"], began["ranks"]) == (JOB, ["node1", "node2"], 2)
    assert [one["code"] for one in task.events("ended")] == [0]


@pytest.mark.parametrize("number", supervisor.SIGNALS)
def test_signals_go_on_to_the_trainer(task: Task, number: signal.Signals) -> None:
    trainer = (
        f"signal.signal({int(number)}, lambda *_: (print('heard', flush=True), os._exit(85)))\n"
        "print('ready', flush=True)\ntime.sleep(30)"
    )
    ready = task.run.ranks / f"{JOB}_0.log"
    later(lambda: os.kill(os.getpid(), number), lambda: ready.exists() and "ready" in ready.read_text())
    assert task.start(trainer) == 85
    assert "heard" in task.log


def test_a_trainer_that_could_not_listen_yet_comes_back(task: Task) -> None:
    ready = task.run.ranks / f"{JOB}_0.log"
    later(
        lambda: os.kill(os.getpid(), signal.SIGUSR2), lambda: ready.exists() and "ready" in ready.read_text()
    )
    assert task.start("print('ready', flush=True)\ntime.sleep(30)") == 85


@pytest.mark.parametrize(("code", "noted"), [("0", False), ("85", False), ("1", True), ("2", True)])
def test_another_task_notes_a_bad_end_and_leaves_the_rest_to_the_first(
    task: Task, code: str, noted: bool
) -> None:
    assert task.start(f"sys.exit({code})", rank=1) == 0
    lost = read_log(task.run.root / "logs" / "lost.jsonl")
    assert [(one["rank"], one["host"], one["code"]) for one in lost] == (
        [(1, "node2", int(code))] if noted else []
    )
    assert read_log(task.run.jobs) == []


def test_the_rank_that_was_killed_is_to_blame(task: Task) -> None:
    task.start("os.kill(os.getpid(), 9)", rank=1)
    assert task.start("print('error: rank 1 does not come'); sys.exit(1)") == 1
    assert [one["cause"] for one in task.events("ended")] == ["rank 1 (node2): killed by SIGKILL"]


def test_without_one_the_trainer_s_own_words_count(task: Task) -> None:
    assert task.start("print('error: the disk is full'); sys.exit(1)") == 1
    assert [one["cause"] for one in task.events("ended")] == ["the disk is full"]


def test_words_and_losses_of_an_earlier_start_do_not_count(task: Task) -> None:
    task.start("os.kill(os.getpid(), 9)", rank=1)
    task.start("print('error: the disk is full'); sys.exit(1)")
    assert task.start("sys.exit(3)", restart=1) == 3
    assert task.events("ended")[-1]["cause"] == "exit code 3, and no rank said why"


def test_bad_input_of_any_rank_is_bad_input(task: Task) -> None:
    task.start("sys.exit(2)", rank=1)
    assert task.start("sys.exit(1)") == 2


def test_a_trainer_that_stays_after_another_was_lost_is_ended(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "_GRACE_S", 0.2)
    (task.run.root.parent / "snapshot").mkdir()
    lora = load(ROOT / "configs" / "lora.yaml", ["health.silent_seconds=0.2"])
    (task.run.root.parent / "snapshot" / "config.yaml").write_text(dump(lora))
    task.start("os.kill(os.getpid(), 9)", rank=1)
    assert task.start("print(os.getpid(), flush=True); time.sleep(60)") == 137
    assert not Path(f"/proc/{task.log.split()[-1]}").exists()
    assert task.events("ended")[0]["cause"] == "rank 1 (node2): killed by SIGKILL"


def test_submitit_queues_again_once_the_trainer_has_ended(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[object] = []

    def submitits_own(number: int, frame: object) -> None:
        done.append((signal.Signals(number).name, task.log.strip()))
        # Slurm ends the job as soon as it is queued again, and what queues it.
        os.kill(os.getpid(), signal.SIGTERM)
        subprocess.check_call(["bash", "-c", "kill -TERM $$"])
        raise SystemExit(-1)

    signal.signal(signal.SIGUSR2, submitits_own)
    monkeypatch.setenv("SUBMITIT_FOLDER", str(task.run.root))
    verdict = Verdict(True, "it comes back", exclude=("node7",))
    monkeypatch.setattr(supervisor, "after", lambda run, code, environ: verdict)
    monkeypatch.setattr(supervisor, "keep_away", lambda job, hosts: done.append((job, hosts)))
    monkeypatch.setattr(supervisor, "_UNTIL_ENDED_S", 0.2)
    assert task.start("print('saved'); sys.exit(85)") == 85
    assert done == [("SIGUSR2", "saved"), (JOB, ("node7",))]
    assert task.events("ended")[0]["again"]


def test_what_slurm_has_queued_again_itself_is_left_alone(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdict = Verdict(True, "Slurm has queued it again", queued=True)
    monkeypatch.setattr(supervisor, "after", lambda run, code, environ: verdict)
    monkeypatch.setattr(supervisor, "keep_away", lambda job, hosts: None)
    monkeypatch.setattr(supervisor, "_UNTIL_ENDED_S", 0.2)
    signal.signal(signal.SIGUSR2, lambda *_: pytest.fail("queued twice"))
    assert task.start("sys.exit(85)") == 85


def test_a_trainer_has_time_to_notice_that_another_is_silent(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        supervisor, "_GRACE_S", 0.0
    )  # its settings are those of a start that wrote none: 60 s
    task.start("os.kill(os.getpid(), 9)", rank=1)
    assert task.start("time.sleep(1.5); print('error: rank 1 is silent', flush=True); sys.exit(1)") == 1
    assert "rank 1 is silent" in task.log


def test_without_slurm_s_commands_what_comes_after_is_left_to_the_batch_script(
    task: Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("launch.queueing.supervisor.shutil.which", lambda name: None)
    assert task.start("sys.exit(85)") == 85
    assert task.events("ended") == []
    assert task.start("") == 0
    assert [one["code"] for one in task.events("ended")] == [0]


def test_a_start_that_is_refused_trains_nothing(task: Task) -> None:
    for number in range(20):
        began = {"SLURM_JOB_ID": JOB, "SLURM_RESTART_COUNT": str(number)}
        supervisor.began(task.run.root, ["node1"], 2, began)
    assert task.start("", rank=1, restart=20) == 0
    assert task.start("", restart=20) == 2
    assert not task.run.ranks.exists()
    (ended,) = task.events("ended")
    assert (ended["code"], ended["again"]) == (2, False)
    assert "began 20 times" in ended["cause"]


def test_how_a_start_ended_is_found_again(task: Task) -> None:
    environ = {"SLURM_JOB_ID": JOB, "SLURM_RESTART_COUNT": "1"}
    assert supervisor.end_of(task.run.root, environ) is None
    supervisor.ended(task.run.root, 1, "first", Verdict(False, "why"), {"SLURM_JOB_ID": JOB})
    assert supervisor.end_of(task.run.root, environ) is None
    supervisor.ended(task.run.root, 1, "second", Verdict(True, "why"), environ)
    found = supervisor.end_of(task.run.root, environ)
    assert found is not None
    assert (found["cause"], found["again"]) == ("second", True)


@pytest.mark.parametrize(
    ("said", "state", "restarts", "done"),
    [
        (None, "RUNNING", 0, "requeue 4711_1"),
        (True, "RUNNING", 0, "requeue 4711_1"),
        (True, "RUNNING", 1, ""),
        (True, "COMPLETING", 0, ""),
        (False, "RUNNING", 0, ""),
    ],
)
def test_what_is_left_after_the_tasks_is_done_once(
    task: Task, monkeypatch: pytest.MonkeyPatch, said: bool | None, state: str, restarts: int, done: str
) -> None:
    """The batch script's last line: the first task was killed before it could say, or do, what becomes of the job.

    Here the last job of an array, which has the array's own number.
    """
    show = f'echo "JobId=4711 JobState={state} Reason=None Restarts={restarts} ExcNodeList=(null)"'
    folder = stand_ins(
        task.run.root.parent / "bin",
        monkeypatch,
        scontrol=f'case $1 in show) {show} ;; *) echo "$*" >> "$HERE/done" ;; esac',
    )
    for name, value in {"JOB_ID": JOB, "ARRAY_JOB_ID": JOB, "ARRAY_TASK_ID": "1"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr("sys.argv", ["ltx-launch", "job-left", "/runs/other", str(task.run.root), "137"])
    if said is not None:
        supervisor.ended(task.run.root, 137, "cause", Verdict(said, "why"), os.environ)
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 137
    assert ((folder / "done").read_text().strip() if (folder / "done").exists() else "") == done
