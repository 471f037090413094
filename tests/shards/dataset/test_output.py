from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shards.dataset.convert import convert
from shards.dataset.index import index
from shards.dataset.merge import merge
from shards.dataset.opened import open_dataset
from shards.dataset.output import UNFINISHED_NAME, move, new_dataset, workspace, writing
from shards.doctor.diagnose import diagnose
from shards.doctor.repair import repair
from shards.errors import InputError
from shards.storage import open_storage
from tests.support.damage import flip
from tests.support.datasets import write_dataset
from tests.support.runs import ROOT

# A process that writes a dataset until it is told to end, or is killed.
WRITER = """
import sys
from shards.dataset.output import new_dataset
with new_dataset(sys.argv[1], "convert --to tar") as storage:
    storage.write("shards/000000.tar", b"precious")
    print("writing", flush=True)
    sys.stdin.readline()
    storage.write("manifest.parquet", b"m")
"""


@contextmanager
def writer(root: Path | str) -> Iterator[subprocess.Popen[bytes]]:
    """Another process in the middle of writing a dataset."""
    command = [sys.executable, "-c", WRITER, str(root)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"writing\n"
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_a_second_writer_is_refused_naming_the_first(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    root = str(tmp_path / "out") if kind == "folder" else f"{request.getfixturevalue('bucket')}/out"
    with writer(root) as process:
        for refused in (new_dataset(root, "import"), writing(open_storage(root))):
            with pytest.raises(InputError) as error, refused:
                pass
            assert str(error.value).startswith(f"{root} is being written by process {process.pid} on ")
        assert process.stdin
        process.stdin.write(b"\n")
        process.stdin.flush()
        assert process.wait(20) == 0
    assert [entry.path for entry in open_storage(root).list()] == ["manifest.parquet", "shards/000000.tar"]


def test_the_place_of_a_killed_writer_is_free_at_once(tmp_path: Path) -> None:
    with writer(tmp_path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        (tmp_path / "shards/.000001.tar.12.tmp").write_bytes(b"half")
        began = time.monotonic()
        with new_dataset(tmp_path, "convert --to tar"):
            assert os.listdir(tmp_path / "shards") == []
        assert time.monotonic() - began < 10
    assert os.listdir(tmp_path) == ["shards"]


def test_a_writer_clears_what_was_left_long_ago_and_no_write_of_now(tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    names = ["shards/.a.tmp", "shards/.b.tmp", ".manifest.parquet.1.tmp", ".dataset.json.1.tmp"]
    for number, name in enumerate(names):
        (tmp_path / name).write_bytes(b"")
        if not number % 2:
            os.utime(tmp_path / name, (time.time() - 7200,) * 2)
    with writing(open_storage(tmp_path)):
        pass
    assert sorted(path.name for path in tmp_path.rglob(".*")) == [".b.tmp", ".dataset.json.1.tmp"]


def test_a_writer_that_lost_its_place_does_not_report_success(tmp_path: Path) -> None:
    def lose() -> None:
        with writing(open_storage(tmp_path)):
            claim = tmp_path / "writing.json"
            claim.write_text(json.dumps(json.loads(claim.read_text()) | {"nonce": "another"}))

    with pytest.raises(InputError, match="this process stood still, and another wrote there meanwhile"):
        lose()
    assert (tmp_path / "writing.json").exists()


def test_a_dataset_whose_last_step_was_not_noted_is_complete(tmp_path: Path) -> None:
    write_dataset(tmp_path / "tars", 4)
    convert(tmp_path / "tars", tmp_path / "mds", "mds")
    before = {path: path.read_bytes() for path in (tmp_path / "mds").rglob("*") if path.is_file()}
    (tmp_path / "mds" / UNFINISHED_NAME).write_text(json.dumps({"command": "convert --to mds"}))
    write_dataset(tmp_path / "others", 4, seed=1)
    with pytest.raises(InputError, match=r"mds holds a complete dataset: .* nothing is left to do"):
        convert(tmp_path / "others", tmp_path / "mds", "mds")
    with pytest.raises(InputError, match="already holds a dataset: give another folder"):
        convert(tmp_path / "others", tmp_path / "mds", "mds")
    (tmp_path / "mds" / UNFINISHED_NAME).write_text(json.dumps({"command": "convert --to mds"}))
    assert convert(tmp_path / "tars", tmp_path / "mds", "mds").was_complete
    assert {path: path.read_bytes() for path in (tmp_path / "mds").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("command", ["index", "repair"])
def test_a_manifest_made_of_an_older_one_is_not_written(command: str, tmp_path: Path) -> None:
    root, other = tmp_path / "data", tmp_path / "other"
    write_dataset(root, 6)
    write_dataset(other, 3, keys=["x", "y", "z"], info=open_dataset(root).info, seed=1)

    def meanwhile(*_: object) -> None:
        merge([other], root)

    if command == "index":
        with pytest.raises(
            InputError, match=r"manifest.parquet was written by another command meanwhile: run this"
        ):
            index(root, on_shard=meanwhile)
    else:
        flip(root, 2)
        diagnosis = diagnose(root)
        meanwhile()
        with pytest.raises(
            InputError, match=r"manifest.parquet was written by another command meanwhile: run this"
        ):
            repair(diagnosis)
    assert len(open_dataset(root).manifest) == 9


def test_a_file_is_on_the_disk_before_it_has_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    sync, replace = os.fsync, os.replace

    def synced(descriptor: int) -> None:
        done.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        sync(descriptor)

    def replaced(source: Path, target: Path) -> None:
        done.append(f"rename {Path(target).name}")
        replace(source, target)

    storage = open_storage(tmp_path / "out")
    with workspace(storage) as folder:
        (folder / "made").write_bytes(b"data")
        monkeypatch.setattr(os, "fsync", synced)
        monkeypatch.setattr(os, "replace", replaced)
        move(folder / "made", storage, "shards/0.mds")
    assert done == ["sync made", "rename 0.mds", "sync shards"]
    assert storage.read("shards/0.mds") == b"data"
