"""A snapshot is what runs, whatever is edited, installed or lies in the folder of the call."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dist_trainer.config import RunConfig, load
from launch import snapshot
from shards.errors import InputError
from tests.support.runs import ROOT, tiny_config, write_config


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    folder = tmp_path_factory.mktemp("config")
    return load(write_config(folder / "c.yaml", tiny_config(folder, folder, folder / "run")))


def imported_from(folder: Path, cwd: Path) -> list[Path]:
    """Where a job's Python finds the packages, called in `cwd`."""
    script = (
        "import shards, dist_trainer, launch; print(shards.__file__, dist_trainer.__file__, launch.__file__)"
    )
    (folder / "where.py").write_text(script)
    done = subprocess.run(
        [sys.executable, "-P", "-m", "where"],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=True,
    )
    return [Path(word).parents[1] for word in done.stdout.split()]


def test_it_wins_over_the_installed_packages_and_those_of_the_folder_of_the_call(
    config: RunConfig, tmp_path: Path
) -> None:
    taken = snapshot.take(tmp_path / "run", snapshot.with_config(snapshot.code(), config))
    for cwd in (ROOT, tmp_path):
        assert imported_from(taken, cwd) == [taken] * 3


def test_it_holds_the_resolved_config(config: RunConfig, tmp_path: Path) -> None:
    taken = snapshot.take(tmp_path, snapshot.with_config(snapshot.code(), config))
    assert load(taken / snapshot.CONFIG_NAME) == config


def test_edited_code_is_another_snapshot(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = tmp_path / "copy"
    for package in snapshot.PACKAGES:
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    found = {package: copy / package for package in snapshot.PACKAGES}
    monkeypatch.setattr(snapshot, "_root", lambda package: found[package])
    files = snapshot.with_config(snapshot.code(), config)
    taken = snapshot.take(tmp_path / "run", files)
    (copy / "dist_trainer" / "loop.py").write_text("edited\n")
    assert (taken / "dist_trainer" / "loop.py").read_bytes() == (
        ROOT / "dist_trainer" / "loop.py"
    ).read_bytes()
    edited = snapshot.take(tmp_path / "run", snapshot.with_config(snapshot.code(), config))
    assert edited != taken
    assert (edited / "dist_trainer" / "loop.py").read_text() == "edited\n"


def test_the_same_files_are_kept_once(config: RunConfig, tmp_path: Path) -> None:
    files = snapshot.with_config(snapshot.code(), config)
    assert snapshot.take(tmp_path, files) == snapshot.take(tmp_path, files) == snapshot.place(tmp_path, files)
    assert len(list((tmp_path / "snapshots").iterdir())) == 1
    changed = config.model_copy(update={"seed": config.seed + 1})
    assert snapshot.place(tmp_path, snapshot.with_config(files, changed)) != snapshot.place(tmp_path, files)


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[tuple[str, bool]] = []
    final = snapshot.place(tmp_path, files := {"config.yaml": b"a", "launch/cli/here.py": b"b"})

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}")).relative_to(final.parent)
        synced.append(("/".join(path.parts[1:]), final.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    snapshot.take(tmp_path, files)
    assert sorted(synced[:-1]) == [(name, False) for name in ("", *sorted([*files, "launch", "launch/cli"]))]
    assert synced[-1] == ("", True), "the rename too"


def test_what_cannot_be_written_is_said_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "snapshots").touch()
    with pytest.raises(InputError, match="output_dir"):
        snapshot.take(tmp_path, {"a": b"a"})
    assert (tmp_path / "snapshots").is_file()


def test_neither_compiled_code_nor_weights_are_taken() -> None:
    files = snapshot.code()
    assert not [name for name in files if "__pycache__" in name]
    assert max(map(len, files.values())) < 100_000
    assert "dist_trainer/tiny/transformer.yaml" in files
