"""The stages on a real Slurm: a step of many tasks, an array of jobs, and a task that is killed."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from tests.support.clips import write_ramp
from tests.support.models import tiny_model
from tests.support.runs import ROOT, environment
from tests.support.slurm import Cluster

CLIPS = 8
BUCKET = "64x64x9"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY")

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few small clips."""
    folder = tmp_path_factory.mktemp("clips")
    lines = ["caption,media_path"]
    for number in range(CLIPS):
        write_ramp(folder / f"{number}.mp4", 12, 80, 64, number % 7, fps=20 + number)
        lines.append(f"clip {number},{number}.mp4")
    (folder / "clips.csv").write_text("\n".join(lines))
    return folder / "clips.csv"


def encode(table: Path, out: Path) -> str:
    """The command, as a job's script has it: a unit of one clip each."""
    return (
        f"{sys.executable} -m shards encode {table} --model {tiny_model()} --out {out} --buckets {BUCKET} "
        "--rows-per-shard 1"
    )


def script(path: Path, *directives: str, command: str) -> str:
    """A batch script of Slurm's, with its output beside it."""
    lines = ["#!/bin/bash", f"#SBATCH --output={path.parent}/out-%j", *(f"#SBATCH {d}" for d in directives)]
    path.write_text("\n".join((*lines, f"cd {ROOT}", command, "")))
    return str(path)


def printed(folder: Path) -> str:
    """What the jobs of a folder printed."""
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("out-*")))


def contents(dataset: Path) -> dict[str, bytes]:
    """All that a user sees of a dataset."""
    files = (path for path in dataset.rglob("*") if path.is_file())
    return {
        str(path.relative_to(dataset)): path.read_bytes()
        for path in files
        if not path.relative_to(dataset).parts[0].startswith(".")
    }


@pytest.fixture(scope="module")
def undisturbed(slurm: Cluster, table: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The dataset that one task makes."""
    folder = tmp_path_factory.mktemp("alone")
    submit = script(folder / "job.sh", command=encode(table, folder / "out"))
    job = slurm.submit(submit, cwd=folder, env=environment())
    assert slurm.wait(job, *ENDED) == "COMPLETED", printed(folder)
    found = contents(folder / "out")
    assert len([name for name in found if name.endswith(".tar")]) == CLIPS
    return found


def test_a_step_of_tasks_on_two_nodes_makes_the_same_dataset(
    slurm: Cluster, table: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    command = f"srun {encode(table, tmp_path / 'out')}"
    submit = script(tmp_path / "job.sh", "--nodes=2", "--ntasks-per-node=1", command=command)
    job = slurm.submit(submit, cwd=tmp_path, env=environment())
    assert slurm.wait(job, *ENDED) == "COMPLETED", printed(tmp_path)
    assert contents(tmp_path / "out") == undisturbed


def test_an_array_with_a_node_killed_in_its_midst_makes_the_same_dataset(
    slurm: Cluster, table: Path, undisturbed: dict[str, bytes], tmp_path: Path
) -> None:
    submit = script(
        tmp_path / "job.sh", "--array=0-2", "--no-requeue", command=encode(table, tmp_path / "out")
    )
    # One task a node, so that the node killed holds one of three.
    job = slurm.submit("--exclusive", submit, cwd=tmp_path, env=environment())
    units = tmp_path / "out" / ".encode" / "units"
    slurm.wait(f"{job}_1", *ENDED, until=lambda: units.is_dir() and any(units.iterdir()))
    node = slurm.call("squeue", "--noheader", f"--jobs={job}_1", "--states=all", "--format=%N")
    slurm.kill_node(node)
    try:
        for task in (0, 2):
            assert slurm.wait(f"{job}_{task}", *ENDED, limit=200) == "COMPLETED", printed(tmp_path)
        assert slurm.state(f"{job}_1") == "NODE_FAIL"
    finally:
        slurm.start_node(node)
        deadline = time.monotonic() + 30
        while slurm.call("sinfo", "-h", "-n", node, "-p", "main", "-o", "%T") != "idle":
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert contents(tmp_path / "out") == undisturbed
