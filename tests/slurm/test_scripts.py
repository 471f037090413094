"""The batch scripts, unmodified, on a real Slurm, and what befalls jobs there: each run then is the undisturbed run.

The stories run a few at a time, as jobs of a cluster do; the tests look at what each has left.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shards.dataset.opened import Dataset
from tests.support import forked
from tests.support.audit import assert_nothing_lost, assert_same_run
from tests.support.runs import (
    ONE_PACK,
    ROOT,
    environment,
    lines,
    lora_blocks,
    tiny_config,
    write_config,
)
from tests.support.slurm import Cluster

SCRIPTS = sorted((ROOT / "slurm").rglob("*.sh"))
STEPS, INTERVAL = 16, 5
MODES = {"full_ft": {}, "lora": lora_blocks(), "ic_lora": lora_blocks(reference=True)}
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT")
LIMIT_S = 300.0

pytestmark = pytest.mark.timeout(900)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_sound_bash(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)
    if not shutil.which("shellcheck"):
        pytest.skip("shellcheck not installed: apt-get install --no-install-recommends shellcheck")
    subprocess.run(["shellcheck", "--external-sources", str(script)], check=True, cwd=ROOT)


@pytest.mark.parametrize("name", ["full_ft", "lora", "ic_lora", "prepare"])
def test_scripts_are_a_header_and_one_call(name: str) -> None:
    text = (ROOT / "slurm" / f"{name}.sh").read_text()
    assert len([line for line in text.splitlines() if line and not line.startswith("#")]) == 2


class Run:
    """A run that jobs of `slurm/<mode>.sh` train: its folder, its jobs, and what they print."""

    def __init__(self, slurm: Cluster, root: Path, mode: str, blocks: dict[str, Any]) -> None:
        self.slurm, self.mode = slurm, mode
        self.folder = root / "run"
        self._out, self._config = root / "jobs.out", write_config(root / "config.yaml", blocks)

    def submit(self, *words: str, nodes: int = 2, gpus: int = 1, more: tuple[str, ...] = ()) -> str:
        """Queue the script, with a header of smaller values; `more` settings."""
        size = (
            f"--nodes={nodes}",
            "--ntasks-per-node=1",
            "--cpus-per-task=1",
            "--time=20",
            f"--gpus-per-node={gpus}",
        )
        script = (f"slurm/{self.mode}.sh", str(self._config), f"output_dir={self.folder}", *more)
        return self.slurm.submit(*size, f"--output={self._out}", *words, *script, cwd=ROOT, env=environment())

    @property
    def printed(self) -> str:
        """What the jobs themselves printed."""
        return self._out.read_text(errors="replace") if self._out.is_file() else ""

    @property
    def jobs(self) -> list[dict[str, Any]]:
        """The run's log of jobs."""
        return lines(self.folder / "logs" / "jobs.jsonl")

    def ended(self) -> list[tuple[int, bool]]:
        """Exit code of each start of a job, and whether it came back."""
        return [(record["code"], record["again"]) for record in self.jobs if record["event"] == "ended"]

    def until(self, step: int, start: int = 1) -> None:
        """Wait until the ranks of the run's start number `start` train the step after `step`."""

        def there() -> bool:
            path = self.folder / "metrics.jsonl"
            begun = [record for record in self.jobs if record["event"] == "began"] if path.is_file() else []
            fresh = len(begun) == start and path.stat().st_mtime > begun[-1]["time"]
            return fresh and path.read_text().count("\n") >= step

        self.wait_for(there)

    def wait_for(self, there: Callable[[], bool]) -> None:
        """Wait, not for ever."""
        deadline = time.monotonic() + LIMIT_S
        while not there():
            assert time.monotonic() < deadline, f"{self.printed}\n{self.logs()}"
            self.slurm.start_requeued()
            time.sleep(0.1)

    def ends(self, job: str, state: str = "COMPLETED") -> None:
        """Wait for a job's end."""
        assert self.slurm.wait(job, *ENDED, limit=LIMIT_S) == state, f"{self.printed}\n{self.logs()}"

    def logs(self) -> str:
        """What all ranks printed."""
        return "".join(
            f"--- {path.name}\n{path.read_text()}" for path in sorted((self.folder / "logs").rglob("*.log"))
        )


class Stories:
    """What happens to runs, told a few at a time."""

    def __init__(self, slurm: Cluster, root: Path, config: Callable[..., dict[str, Any]]) -> None:
        self.slurm, self._root, self._config = slurm, root, config

    def run(self, name: str, mode: str, **blocks: Any) -> Run:
        """A new run of a mode."""
        return Run(self.slurm, self._root / name, mode, self._config(mode, **blocks))

    def node_dies(self) -> Run:
        run = self.run("node_dies", "ic_lora")
        job = run.submit("--exclude=node1")
        run.until(INTERVAL + 2)
        # The other stories of this time keep to node1 and node2.
        dead = self.slurm.hosts(job)[-1]
        self.slurm.kill_node(dead)
        try:
            run.ends(job)
        finally:
            self.slurm.start_node(dead)
        return run

    def told_then_killed(self) -> Run:
        """USR2, as before the end of its time, with a bad node on record; then a rank is killed."""
        run = self.run("told_then_killed", "full_ft", health={"preflight": True})
        job = run.submit()
        run.until(2)
        bad = {"time": 0.0, "job": job, "restart": 0, "host": self.slurm.hosts(job)[1], "cause": "a test"}
        (run.folder / "logs" / "bad_nodes.jsonl").write_text(json.dumps(bad) + "\n")
        # To the ranks and to the script, which passes it on.
        self.slurm.call("scancel", "--full", "--signal=USR2", job)
        run.until(INTERVAL + 2, start=2)
        self.slurm.kill_rank(job, 1)
        next_job = run.submit(f"--dependency=afterany:{job}")
        run.ends(job)
        run.ends(next_job)
        return run

    def evicted(self) -> Run:
        run = self.run("evicted", "lora")
        # As where Slurm is not set up to send a signal of the job's own.
        job = run.submit("--partition=preempt", "--exclude=node3,node4", "--signal=TERM@60", gpus=4)
        run.until(INTERVAL + 2)
        other = self.slurm.submit(
            "--nodelist=node2", "--gpus-per-node=6", "--output=/dev/null", "--wrap=true", cwd=ROOT
        )
        self.slurm.wait(other, *ENDED, limit=LIMIT_S)
        run.ends(job)
        return run

    def crashes_again(self) -> Run:
        """Each start of it loses a rank at the same step."""
        run = self.run(
            "crashes_again",
            "lora",
            health={"preflight": False, "max_restarts": 1},
            checkpoints={"interval": None},
        )
        job = run.submit("--exclude=node3,node4", nodes=1)
        for start in (1, 2):
            run.until(2, start)
            self.slurm.kill_rank(job, 0)
        run.ends(job, "FAILED")
        return run

    def refused(self) -> Run:
        """A setting that there is not."""
        run = self.run("refused", "full_ft")
        run.ends(run.submit(more=("optimization.stepz=3",)), "FAILED")
        return run

    def cancelled(self) -> Run:
        """Saved, cancelled, gone on with on one node, stopped, gone on with on four."""
        run = self.run("cancelled", "full_ft")
        job = run.submit()
        run.until(1)
        save, stop = run.folder / "SAVE", run.folder / "STOP"
        save.touch()
        run.wait_for(lambda: not save.exists())
        self.slurm.call("scancel", job)
        run.ends(job, "CANCELLED")
        alone = run.submit(nodes=1)
        run.until(INTERVAL, start=2)
        stop.touch()
        waiting = run.submit(f"--dependency=afterany:{alone}")
        run.ends(alone)
        run.ends(waiting)
        stop.unlink()
        run.ends(run.submit(nodes=4))
        assert self.slurm.state(job) == "CANCELLED"
        return run


@pytest.fixture(scope="module")
def stories(
    slurm: Cluster, model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Run]]:
    """The run of a story by its name."""
    root = tmp_path_factory.mktemp("stories")

    def config(mode: str, **blocks: Any) -> dict[str, Any]:
        sized = {"steps": STEPS, "learning_rate": 1e-3}
        given = {
            "optimization": sized,
            "checkpoints": {"interval": INTERVAL, "keep_last_n": 0},
            "health": {"preflight": False},
            "seed": 7,
            **ONE_PACK,
        }
        return tiny_config(
            model_folder, paired_dataset.root, root / "whole" / mode, **{**MODES[mode], **given, **blocks}
        )

    told = Stories(slurm, root, config)

    def one_after_another(*names: str) -> dict[str, Future[Run]]:
        alone = ThreadPoolExecutor(1)
        return {name: alone.submit(getattr(told, name)) for name in names}

    # Those of the first row need nodes that are left alone.
    rows = (("node_dies", "told_then_killed", "cancelled"), ("evicted", "refused"), ("crashes_again",))
    found = {name: future for row in rows for name, future in one_after_another(*row).items()}
    # The undisturbed ones meanwhile.
    for mode in MODES:
        whole = write_config(root / "whole" / f"{mode}.yaml", config(mode))
        forked.train(2, whole, root / "whole" / "logs", timeout_s=LIMIT_S)
    yield lambda name: found[name].result()
    for future in found.values():
        future.cancel()


def test_a_node_that_dies_costs_the_steps_since_the_last_checkpoint_alone(
    stories: Callable[[str], Run],
) -> None:
    run = stories("node_dies")
    assert_same_run(run.folder, whole(run))
    first, second = nodes(run)
    assert set(first) - set(second), "it went on without the node"
    assert run.ended()[-1] == (0, False)


def test_told_to_stop_it_saves_and_comes_back_without_the_bad_node(stories: Callable[[str], Run]) -> None:
    run = stories("told_then_killed")
    assert run.ended()[0] == (85, True)
    first, second, third = nodes(run)
    assert first[1] not in (*second, *third)
    job = run.jobs[0]["job"]
    assert f"ExcNodeList={first[1]}\n" in run.slurm.call("scontrol", "show", "job", job)
    assert run.jobs[1]["step"] == run.jobs[1]["reached"], "nothing was trained that was not saved"


def test_a_killed_rank_is_named_and_the_job_goes_on(stories: Callable[[str], Run]) -> None:
    run = stories("told_then_killed")
    assert [again for _, again in run.ended()] == [True, True, False]
    host = nodes(run)[1][1]
    assert f"rank 1 ({host}): Killed" in run.printed
    assert "crash 1 without a new checkpoint since step" in run.printed
    assert_same_run(run.folder, whole(run))


def test_a_job_queued_behind_a_run_that_is_done_ends_at_once(stories: Callable[[str], Run]) -> None:
    run = stories("told_then_killed")
    assert run.printed.rstrip().endswith(f"all {STEPS} steps are done; raise optimization.steps to go on")
    assert len(nodes(run)) == 3


def test_an_evicted_job_saves_first_and_comes_back(stories: Callable[[str], Run]) -> None:
    run = stories("evicted")
    assert run.ended() == [(85, True), (0, False)]
    assert "SIGTERM came" in run.logs()
    assert run.jobs[1]["step"] == run.jobs[1]["reached"]
    assert_same_run(run.folder, whole(run))


def test_a_crash_that_repeats_ends_the_chain_with_one_line(stories: Callable[[str], Run]) -> None:
    run = stories("crashes_again")
    assert [again for _, again in run.ended()] == [True, False]
    cause, verdict = run.printed.splitlines()[-2:]
    assert cause.endswith(f"ended with code 137: rank 0 ({nodes(run)[1][0]}): Killed")
    why = "crashed 2 times without a first checkpoint (health.max_restarts: 1); correct the cause, then submit again"
    assert verdict == f"error: not queued again: {why}"
    assert "Traceback" not in run.printed


def test_bad_input_ends_a_job_with_one_line(stories: Callable[[str], Run]) -> None:
    printed = stories("refused").printed.splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("error: ")
    assert "optimization.stepz" in printed[0]


def test_a_cancelled_job_stays_so_and_another_goes_on_from_what_was_saved(
    stories: Callable[[str], Run],
) -> None:
    run = stories("cancelled")
    began = [record for record in run.jobs if record["event"] == "began"]
    assert [record["ranks"] for record in began] == [2, 1, 4]
    assert len({record["job"] for record in began}) == 3
    saved = {int(path.name[5:]) for path in (run.folder / "checkpoints").glob("step_*")}
    resumed = [int(step) for step in re.findall(r"resuming after step (\d+)\n", run.logs())]
    # One that is cancelled saves once more, if Slurm lets it live so long.
    assert len(resumed) == 2
    assert set(resumed) <= saved
    assert resumed[0] >= min(saved)
    assert_nothing_lost(run.folder, whole(run))


def test_jobs_end_at_once_while_a_run_is_stopped(stories: Callable[[str], Run]) -> None:
    run = stories("cancelled")
    assert run.printed.count("STOP is there: remove it to go on") == 1
    assert len(nodes(run)) == 3


def test_two_jobs_share_nodes(stories: Callable[[str], Run]) -> None:
    one, other = (stories(name).jobs for name in ("evicted", "crashes_again"))
    assert set(one[0]["nodes"]) & set(other[0]["nodes"])
    assert max(one[0]["time"], other[0]["time"]) < min(one[1]["time"], other[1]["time"]), "at the same time"


def whole(run: Run) -> Path:
    """The undisturbed run of the same mode."""
    return run.folder.parents[1] / "whole" / run.mode


def nodes(run: Run) -> list[list[str]]:
    """The nodes of each start of a run."""
    return [record["nodes"] for record in run.jobs if record["event"] == "began"]
