from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.preflight.storage import clear, try_writing, unseen
from shards.errors import InputError


def test_files_are_seen_and_missed_and_nothing_stays(tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert try_writing(run, "token", 3)["speed"] > 0
    assert unseen(run, "token", [3], 0) == []
    assert unseen(run, "token", [3, 8], 0.2) == [8]
    assert unseen(run, "other", [3], 0) == [3]
    clear(run, "token", existed=False)
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_was_there_stays(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    try_writing(tmp_path, "token", 0)
    clear(tmp_path, "token", existed=True)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output_dir: .*/file: is a file; choose a folder"):
        try_writing(tmp_path / "file", "token", 0)
    with pytest.raises(InputError, match=r"output_dir: .*/file/run: cannot be written: .*Not a directory"):
        try_writing(tmp_path / "file" / "run", "token", 0)
