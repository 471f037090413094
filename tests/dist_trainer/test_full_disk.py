"""A disk that is full: nothing that was saved is lost, the run says so in a line, and goes on when there is room."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shards.dataset.opened import Dataset
from tests.support.audit import assert_same_run
from tests.support.disks import remount, small_disk
from tests.support.forked import Ended, train
from tests.support.runs import tiny_config, write_config
from tests.support.struck import Strike, strike

STEPS, INTERVAL = 6, 2

pytestmark = pytest.mark.timeout(600)


class Disk:
    """A run whose checkpoints lie on a file system of their own, with little room."""

    def __init__(self, root: Path, model: Path, data: Path, whole: Path) -> None:
        self.root, self._model, self._data, self._whole = root, model, data, whole
        self.run = root / "run"
        self.folder = self.run / "checkpoints"

    def holds(self, checkpoints: float) -> None:
        """Give it another size."""
        one = sum(path.stat().st_size for path in (self._whole / "checkpoints").glob("step_*/*"))
        remount(self.folder, f"size={int(checkpoints * one + (1 << 20)) >> 10}k")

    def config(self) -> Path:
        blocks = blocks_of()
        return write_config(self.root / "run.yaml", tiny_config(self._model, self._data, self.run, **blocks))

    def start(self, *strikes: Strike) -> Ended:
        return strike(2, self.config(), strikes, self.root / "logs")

    def names(self) -> list[str]:
        return sorted(path.name for path in self.folder.iterdir())


def blocks_of() -> dict[str, dict[str, float]]:
    return {
        "optimization": {"steps": STEPS, "learning_rate": 1e-3},
        "checkpoints": {"interval": INTERVAL, "keep_last_n": 1},
    }


@pytest.fixture(scope="module")
def whole(model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("disk")
    described = tiny_config(model_folder, paired_dataset.root, root / "whole", **blocks_of())
    train(2, write_config(root / "whole.yaml", described), root / "logs")
    return root / "whole"


@pytest.fixture
def disk(model_folder: Path, paired_dataset: Dataset, whole: Path, tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path, model_folder, paired_dataset.root, whole)
    with small_disk(disk.folder, "1m"):
        yield disk


def test_too_small_a_disk_leaves_a_save_out_and_at_the_end_is_an_error(disk: Disk, whole: Path) -> None:
    disk.holds(1.6)
    ended = disk.start()
    assert ended.codes == [2, 2], str(ended)
    [left_out] = [line for line in ended.stdout[0].splitlines() if "is not saved" in line]
    assert left_out.startswith(f"{disk.folder}: a checkpoint needs ")
    assert left_out.endswith(
        " are free: step 4 is not saved, the newest checkpoint is that of step 2; make room there: "
        "the run goes on and tries again after step 6"
    )
    [error] = ended.errors
    assert error.endswith(
        "step 6 is not saved, the newest checkpoint is that of step 2; make room there, and start the same "
        "command again"
    )
    assert "Traceback" not in "".join(ended.stderr)
    assert disk.names() == ["latest", "step_000002"]
    disk.holds(3)
    again = disk.start()
    assert "resuming after step 2\n" in again.stdout[0], str(again)
    assert_same_run(disk.run, whole)


def test_a_disk_that_gets_full_during_a_save_costs_that_save_only(disk: Disk, whole: Path) -> None:
    disk.holds(4)
    ended = disk.start(Strike(1, "write", 2, "FULL"), Strike(0, "step", 5, "SIGTERM"))
    assert ended.codes == [2, 2], str(ended)
    [left_out] = [line for line in ended.stdout[0].splitlines() if "is not saved" in line]
    assert "No space left on device while rank " in left_out
    [error] = ended.errors
    assert ": step 5 is not saved, the newest checkpoint is that of step 2; make room there, and " in error
    assert disk.names() == ["filler", "latest", "step_000002"]
    (disk.folder / "filler").unlink()
    again = disk.start()
    assert "resuming after step 2\n" in again.stdout[0], str(again)
    assert_same_run(disk.run, whole)
