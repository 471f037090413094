"""`slurm/prepare.sh`, unmodified, on a real Slurm: the ranks of an array share a stage, also where one is killed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.clips import write_ramp
from tests.support.killing import finish, folder_bytes
from tests.support.models import tiny_model
from tests.support.runs import ROOT, environment
from tests.support.slurm import Cluster

CLIPS = 8
BUCKET = "64x64x9"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "NODE_FAIL", "TIMEOUT", "OUT_OF_MEMORY")
SIZE = ("--array=0-1", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1", "--gpus-per-node=1")

pytestmark = pytest.mark.timeout(600)


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


def stage(table: Path, out: Path) -> list[str]:
    """The words a user gives: a unit of one clip each."""
    words = (
        "encode",
        table,
        "--model",
        tiny_model(),
        "--out",
        out,
        "--buckets",
        BUCKET,
        "--rows-per-shard",
        1,
    )
    return [str(word) for word in words]


def printed(folder: Path) -> str:
    """What the tasks of a folder's array printed."""
    return "\n".join(path.read_text(errors="replace") for path in sorted(folder.glob("*.out")))


def test_an_array_with_a_rank_killed_makes_the_dataset_that_one_process_makes(
    slurm: Cluster, table: Path, tmp_path: Path
) -> None:
    output = f"--output={tmp_path}/%A_%a.out"
    words = (*SIZE, output, "slurm/prepare.sh", *stage(table, tmp_path / "out"))
    job = slurm.submit(*words, cwd=ROOT, env=environment())
    slurm.wait(f"{job}_1", until=lambda: bool(slurm.ranks(f"{job}_1", 1)))
    slurm.kill_rank(f"{job}_1", 1)
    finish(stage(table, tmp_path / "alone"))
    # Those that remain do its work, and its array task says that it was not whole.
    assert slurm.wait(f"{job}_0", *ENDED, limit=200) == "COMPLETED", printed(tmp_path)
    assert slurm.wait(f"{job}_1", *ENDED, limit=200) == "FAILED", printed(tmp_path)
    assert "task 1: Killed" in printed(tmp_path)
    made = folder_bytes(tmp_path / "out")
    assert len([name for name in made if name.endswith(".tar")]) == CLIPS
    assert made == folder_bytes(tmp_path / "alone")
