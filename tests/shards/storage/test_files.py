from __future__ import annotations

import errno
import os
import threading
import time
from pathlib import Path

import pytest

from shards.storage import files
from shards.storage.files import OpenFiles


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in "abcd":
        (tmp_path / name).write_bytes(name.encode() * 100)
    return tmp_path


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits that were asked for, none of which takes time."""
    found: list[float] = []
    monkeypatch.setattr(files.time, "sleep", found.append)
    return found


def opened() -> list[str]:
    """What this process has open."""
    return [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]


class Faults:
    """A `preadv` that fails some times; descriptors it failed on stay bad, as those of a lost NFS server do."""

    def __init__(self, number: int, times: int) -> None:
        self.number, self.times = number, times
        self.stale: set[int] = set()
        self.real = os.preadv

    def __call__(self, descriptor: int, views: list[memoryview], offset: int) -> int:
        if self.times > 0 or descriptor in self.stale:
            self.times -= 1
            self.stale = {descriptor}
            raise OSError(self.number, os.strerror(self.number))
        return self.real(descriptor, views, offset)


def filled(opened: OpenFiles, name: str) -> bytes:
    buffer = bytearray(10)
    return bytes(buffer[: opened.fill(name, 0, memoryview(buffer))])


@pytest.mark.parametrize("fault", [errno.ESTALE, errno.EIO])
@pytest.mark.parametrize("times", [1, 3])
def test_a_read_gets_over_a_passing_fault_by_opening_the_file_anew(
    root: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch, fault: int, times: int
) -> None:
    held = OpenFiles(root)
    assert filled(held, "a") == b"a" * 10
    faults = Faults(fault, times)
    monkeypatch.setattr(os, "preadv", faults)
    reopened: list[object] = []
    real = os.open

    def anew(path: Path, *rest: int) -> int:
        reopened.append(path)
        descriptor = real(path, *rest)
        faults.stale.discard(descriptor)
        return descriptor

    monkeypatch.setattr(os, "open", anew)
    assert filled(held, "a") == b"a" * 10
    assert reopened == [root / "a"] * times
    assert slept == [0.1, 0.5, 2.0][:times]
    held.close()


def test_a_lasting_fault_is_raised_and_leaves_no_file_open(
    root: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    held = OpenFiles(root)
    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", Faults(errno.EIO, 99))
        with pytest.raises(OSError, match="Input/output error"):
            filled(held, "a")
    assert slept == [0.1, 0.5, 2.0]
    assert str(root / "a") not in opened()
    assert filled(held, "a") == b"a" * 10
    held.close()


def test_what_waiting_does_not_cure_is_said_at_once(root: Path, slept: list[float]) -> None:
    held = OpenFiles(root)
    os.mkfifo(root / "pipe")
    (root / "folder").mkdir()
    for name, named in (
        ("none", "No such file"),
        ("pipe", "not a regular file"),
        ("folder", "not a regular"),
    ):
        with pytest.raises(OSError, match=named):
            filled(held, name)
    assert slept == []
    assert not [path for path in opened() if path.startswith(str(root))]


def test_few_files_stay_open_and_none_in_use_is_closed(root: Path) -> None:
    held = OpenFiles(root, limit=2)
    with held.open("a") as first:
        for name in "bcd":
            with held.open(name) as descriptor:
                os.fstat(descriptor)
        assert os.fstat(first).st_ino == (root / "a").stat().st_ino
        assert sorted(path for path in opened() if path.startswith(str(root))) == [f"{root}/a", f"{root}/d"]
    held.close()
    assert not [path for path in opened() if path.startswith(str(root))]


def test_a_file_in_use_at_the_end_is_closed_after_its_use(root: Path) -> None:
    held = OpenFiles(root)
    with held.open("a") as descriptor:
        held.close()
        held.close()
        assert os.pread(descriptor, 1, 0) == b"a"
    assert str(root / "a") not in opened()


def test_a_file_that_is_slow_to_open_holds_no_other(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held, going, go = OpenFiles(root), threading.Event(), threading.Event()
    real = os.open

    def slow(path: Path, *rest: int) -> int:
        if path == root / "a":
            going.set()
            assert go.wait(20)
        return real(path, *rest)

    monkeypatch.setattr(os, "open", slow)
    waiting = [threading.Thread(target=filled, args=(held, "a")) for _ in range(3)]
    for thread in waiting:
        thread.start()
    assert going.wait(20)
    began = time.monotonic()
    assert filled(held, "b") == b"b" * 10
    assert time.monotonic() - began < 15
    go.set()
    for thread in waiting:
        thread.join()
    assert sorted(path for path in opened() if path.startswith(str(root))) == [f"{root}/a", f"{root}/b"]
    held.close()
