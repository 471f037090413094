"""Which worker a process is, and a crew of processes on one machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import InputError
from shards.prepare.work.workers import Worker, this_worker

ROOT = Path(__file__).resolve().parents[4]

TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
SRUN = {"SLURM_STEP_ID": "0", "SLURM_PROCID": "6", "SLURM_NTASKS": "8", "SLURM_LOCALID": "2"}
ARRAY = {"SLURM_ARRAY_TASK_ID": "12", "SLURM_ARRAY_TASK_MIN": "10", "SLURM_ARRAY_TASK_COUNT": "4"}
# What Slurm gives the batch script itself, which is not a rank.
SCRIPT = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "8", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environment", "worker"),
    [
        ({}, None),
        (TORCHRUN, Worker(5, 8, 1)),
        (SRUN, Worker(6, 8, 2)),
        (SCRIPT, None),
        ({**SRUN, **TORCHRUN}, Worker(5, 8, 1)),
        ({**SCRIPT, **ARRAY}, Worker(2, 4, 0)),
        ({**SRUN, **ARRAY}, Worker(2 * 8 + 6, 4 * 8, 2)),
        ({**SCRIPT, **ARRAY, **TORCHRUN}, Worker(2 * 8 + 5, 4 * 8, 1)),
        ({"RANK": "0", "WORLD_SIZE": "1"}, Worker(0, 1, 0)),
    ],
    ids=[
        "alone",
        "torchrun",
        "srun",
        "script",
        "torchrun-in-srun",
        "array",
        "srun-in-array",
        "torchrun-in-array",
        "one",
    ],
)
def test_a_worker_finds_its_place_in_what_its_launcher_set(
    environment: dict[str, str], worker: Worker | None
) -> None:
    assert this_worker(environment, None, None) == worker


@pytest.mark.parametrize("environment", [{}, TORCHRUN, {**SRUN, **ARRAY}, {"RANK": "nonsense"}])
def test_flags_stand_above_the_environment(environment: dict[str, str]) -> None:
    assert this_worker(environment, 2, 4) == Worker(2, 4, 2)
    # A number of workers alone: start that many here.
    assert this_worker(environment, None, 4) is None


@given(tasks=st.integers(1, 6), ranks=st.integers(1, 6), first=st.integers(0, 50))
def test_all_ranks_of_all_tasks_of_an_array_are_the_workers(tasks: int, ranks: int, first: int) -> None:
    found = [
        this_worker(
            {
                "SLURM_ARRAY_TASK_ID": str(first + task),
                "SLURM_ARRAY_TASK_MIN": str(first),
                "SLURM_ARRAY_TASK_COUNT": str(tasks),
                "SLURM_STEP_ID": "0",
                "SLURM_PROCID": str(rank),
                "SLURM_NTASKS": str(ranks),
                "SLURM_LOCALID": str(rank),
            },
            None,
            None,
        )
        for task in range(tasks)
        for rank in range(ranks)
    ]
    assert found == [Worker(index, tasks * ranks, index % ranks) for index in range(tasks * ranks)]


@given(st.sets(st.integers(0, 1000), min_size=1, max_size=20))
def test_an_array_with_gaps_has_places_for_all_its_tasks(ids: set[int]) -> None:
    """As `sbatch --array=3,17,40`, which runs again what failed."""
    for task in ids:
        worker = this_worker(
            {
                "SLURM_ARRAY_TASK_ID": str(task),
                "SLURM_ARRAY_TASK_MIN": str(min(ids)),
                "SLURM_ARRAY_TASK_COUNT": str(len(ids)),
            },
            None,
            None,
        )
        assert worker is not None
        assert 0 <= worker.index < worker.count == len(ids)
        assert task != min(ids) or worker.index == 0


@pytest.mark.parametrize(
    ("environment", "index", "count", "message"),
    [
        ({}, None, 0, "--workers 0: give the number of workers, 1 or more"),
        ({}, 1, None, "--worker 1 needs --workers, the number of all workers"),
        ({}, 4, 4, "--worker 4 is not below --workers 4: workers count from 0"),
        ({}, -1, 4, "--worker -1 is not below --workers 4: workers count from 0"),
        (
            {"RANK": "1"},
            None,
            None,
            "environment: the launcher must set RANK, WORLD_SIZE, LOCAL_RANK to whole numbers; "
            "found RANK=1, WORLD_SIZE=(unset), LOCAL_RANK=(unset)",
        ),
        (
            {**TORCHRUN, "RANK": "-1"},
            None,
            None,
            "environment: the launcher must set RANK, WORLD_SIZE, LOCAL_RANK to whole numbers; "
            "found RANK=-1, WORLD_SIZE=8, LOCAL_RANK=1",
        ),
        ({**TORCHRUN, "RANK": "8"}, None, None, "environment: RANK=8 is not below WORLD_SIZE=8"),
        (
            {**SRUN, "SLURM_LOCALID": "a"},
            None,
            None,
            "environment: the launcher must set SLURM_PROCID, SLURM_NTASKS, SLURM_LOCALID to whole numbers; "
            "found SLURM_PROCID=6, SLURM_NTASKS=8, SLURM_LOCALID=a",
        ),
        (
            {**ARRAY, "SLURM_ARRAY_TASK_MIN": "13"},
            None,
            None,
            "environment: SLURM_ARRAY_TASK_ID=12, SLURM_ARRAY_TASK_MIN=13, SLURM_ARRAY_TASK_COUNT=4 "
            "are not a task of an array",
        ),
    ],
)
def test_nonsense_is_refused_by_name(
    environment: dict[str, str], index: int | None, count: int | None, message: str
) -> None:
    with pytest.raises(InputError) as raised:
        this_worker(environment, index, count)
    assert str(raised.value) == message


PARENT = """
import signal, sys, time
from pathlib import Path
sys.path.remove("")  # the true package, not the one of the working folder, which the children take
from shards.prepare.work.workers import crew
# What is started in the background of a script ignores it.
signal.signal(signal.SIGINT, signal.default_int_handler)
secret = open("secret", "w")
with crew(["encode", "--out", "a folder"], int(sys.argv[1])) as worker:
    Path("worker").write_text(repr(worker))
    while not Path("go").exists():
        time.sleep(0.01)
    if Path("go").read_text():
        raise SystemExit(int(Path("go").read_text()))
"""

CHILD = """
import os, sys, time
from pathlib import Path
words = sys.argv[1:]
number = words[words.index("--worker") + 1]
opened = [os.readlink(path) for n in os.listdir("/proc/self/fd") if os.path.exists(path := f"/proc/self/fd/{n}")]
print("from the output")
os.write(2, f"from the errors of {number}\\n".encode())
Path("child.tmp." + number).write_text("\\n".join([str(os.getpid()), " ".join(words), *opened]))
os.rename("child.tmp." + number, "child." + number)
while not Path("end." + number).exists():
    time.sleep(0.01)
sys.exit(int(Path("end." + number).read_text() or "0"))
"""


class Crew:
    """A process with a crew of `count`; the program its children run stands in for `python -m shards`."""

    def __init__(self, folder: Path, count: int) -> None:
        package = folder / "shards"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(CHILD)
        self.folder, self.count = folder, count
        self.errors = open(folder / "errors", "w")  # noqa: SIM115
        self.parent = subprocess.Popen(
            [sys.executable, "-c", PARENT, str(count)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
        )
        for index in range(1, count):
            wait_until((folder / f"child.{index}").exists)

    def child(self, index: int) -> list[str]:
        """Process, arguments and open files of a child."""
        return (self.folder / f"child.{index}").read_text().splitlines()

    def pid(self, index: int) -> int:
        return int(self.child(index)[0])

    def end(self, index: int, code: str = "0") -> None:
        (self.folder / f"new.{index}").write_text(code)
        os.rename(self.folder / f"new.{index}", self.folder / f"end.{index}")

    def go(self, code: str = "") -> None:
        """Let the parent leave the block, by an error where there is a code."""
        (self.folder / "new").write_text(code)
        os.rename(self.folder / "new", self.folder / "go")

    def text(self) -> str:
        return (self.folder / "errors").read_text()

    def close(self) -> None:
        self.parent.kill()
        self.parent.communicate()
        self.errors.close()


def wait_until(true: object, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except FileNotFoundError:
        return False


@pytest.fixture
def crew_of_three(tmp_path: Path):  # type: ignore[no-untyped-def]
    made = Crew(tmp_path, 3)
    yield made
    made.close()


def test_children_are_the_same_command_with_their_number_and_inherit_only_errors(crew_of_three: Crew) -> None:
    crew = crew_of_three
    assert (crew.folder / "worker").read_text() == repr(Worker(0, 3, 0))
    for index in (1, 2):
        _, arguments, *opened = crew.child(index)
        assert arguments == f"encode --out a folder --worker {index} --workers 3"
        assert opened[:3] == ["/dev/null", "/dev/null", str(crew.folder / "errors")]
        assert not [path for path in opened if path.endswith("secret")]
    crew.go()
    crew.end(1)
    crew.end(2)
    output, _ = crew.parent.communicate(timeout=20)
    assert (crew.parent.returncode, output) == (0, b"")
    assert sorted(crew.text().splitlines()) == ["from the errors of 1", "from the errors of 2"]


def test_a_worker_that_dies_or_fails_is_reported_and_the_rest_goes_on(crew_of_three: Crew) -> None:
    crew = crew_of_three
    os.kill(crew.pid(1), signal.SIGKILL)
    wait_until(lambda: "SIGKILL" in crew.text())
    crew.end(2, "2")
    wait_until(lambda: "exit code" in crew.text())
    assert crew.parent.poll() is None
    crew.go()
    assert crew.parent.wait(20) == 0
    reported = [line for line in crew.text().splitlines() if "from the errors" not in line]
    assert reported == [
        f"worker 1 of 3 (process {crew.pid(1)}) was killed by SIGKILL; the others go on",
        f"worker 2 of 3 (process {crew.pid(2)}) failed with exit code 2; the others go on",
    ]


@pytest.mark.parametrize("how", ["killed", "failed", "interrupted"])
def test_children_end_with_their_parent(crew_of_three: Crew, how: str) -> None:
    crew = crew_of_three
    if how == "killed":
        crew.parent.kill()
    elif how == "failed":
        crew.go("5")
    else:
        crew.parent.send_signal(signal.SIGINT)
    code = crew.parent.wait(20)
    assert code == {"killed": -signal.SIGKILL, "failed": 5, "interrupted": -signal.SIGINT}[how]
    wait_until(lambda: not is_running(crew.pid(1)) and not is_running(crew.pid(2)))
    assert "the others go on" not in crew.text()


def test_a_crew_of_one_starts_nothing(tmp_path: Path) -> None:
    crew = Crew(tmp_path, 1)
    crew.go()
    assert crew.parent.wait(20) == 0
    assert (tmp_path / "worker").read_text() == repr(Worker(0, 1, 0))
    assert not list(tmp_path.glob("child.*"))
    crew.close()


def test_workers_import_nothing_from_a_folder_that_the_first_does_not(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "__init__.py").write_text("open('taken', 'w').close()\n")
    start = "from shards.prepare.work.workers import crew\nwith crew(['--help'], 2): pass"
    subprocess.run(
        [sys.executable, "-P", "-c", start],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert not (tmp_path / "taken").exists()
