from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.errors import InputError
from shards.storage import Folder, Storage, open_storage


@pytest.fixture(params=["folder", "s3"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """A storage of each kind, with nothing in it."""
    if request.param == "folder":
        return open_storage(tmp_path / "root")
    return open_storage(f"{request.getfixturevalue('bucket')}/some/prefix")


def paths(storage: Storage, prefix: str = "") -> list[str]:
    return [entry.path for entry in storage.list(prefix)]


def test_what_is_written_is_read_and_written_over(storage: Storage) -> None:
    storage.write("a/b.bin", b"first")
    storage.write("a/b.bin", b"second")
    assert storage.read("a/b.bin") == b"second"


def test_what_is_absent_is_said_with_its_name(storage: Storage) -> None:
    for ask in (storage.read, lambda path: storage.local(path).__enter__()):
        with pytest.raises(FileNotFoundError, match=r"no/such\.bin"):
            ask("no/such.bin")
    with pytest.raises(FileNotFoundError):
        storage.fill("no/such.bin", 0, memoryview(bytearray(3)))
    assert storage.stat("no/such.bin") is None
    storage.remove("no/such.bin")


def test_an_empty_file_is_a_file(storage: Storage) -> None:
    storage.write("empty", b"")
    assert storage.read("empty") == b""
    assert storage.fill("empty", 0, memoryview(bytearray(3))) == 0


def test_listing_gives_everything_below_a_folder_sorted_by_path(storage: Storage) -> None:
    for name in ("b/2", "b/10", "a", "b/c/1", "bb/1"):
        storage.write(name, name.encode())
    assert paths(storage) == ["a", "b/10", "b/2", "b/c/1", "bb/1"]
    assert paths(storage, "b") == paths(storage, "b/") == ["b/10", "b/2", "b/c/1"]
    assert paths(storage, "none") == []
    assert [entry.size for entry in storage.list("b")] == [4, 3, 5]
    assert storage.stat("b/c/1") == storage.list("b/c")[0]


def test_what_is_removed_is_gone(storage: Storage) -> None:
    storage.write("a", b"1")
    storage.remove("a")
    assert storage.stat("a") is None
    assert paths(storage) == []


def test_a_writer_gives_the_name_at_the_end(storage: Storage) -> None:
    with storage.writer("sub/file") as file:
        file.write(b"0123")
        file.seek(1)
        file.write(b"x")
        assert paths(storage) == []
    assert storage.read("sub/file") == b"0x23"


def test_a_writer_that_fails_leaves_what_was_there(storage: Storage) -> None:
    storage.write("file", b"old")
    for name in ("file", "new"):
        with pytest.raises(ZeroDivisionError), storage.writer(name) as file:
            file.write(b"%d" % (1 // 0))
    assert paths(storage) == ["file"]
    assert storage.read("file") == b"old"


def test_a_file_is_created_once(storage: Storage) -> None:
    assert storage.create("claims/1", b"mine")
    assert not storage.create("claims/1", b"other")
    assert storage.read("claims/1") == b"mine"


def test_of_several_that_create_one_succeeds(storage: Storage) -> None:
    for name in ("x", "y", "z"):
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(lambda i, name=name: storage.create(name, b"%d" % i), range(8)))
        assert sum(won) == 1
        assert storage.read(name) == b"%d" % won.index(True)


def test_ranges_are_cut_at_the_end_of_the_file(storage: Storage) -> None:
    data = bytes(range(200))
    storage.write("file", data)
    for offset, length in ((0, 200), (0, 1), (50, 100), (199, 1), (150, 100), (200, 5), (300, 5), (10, 0)):
        buffer = bytearray(length)
        found = storage.fill("file", offset, memoryview(buffer))
        assert buffer[:found] == data[offset : offset + length]
        assert found == len(data[offset : offset + length])


def test_a_local_file_has_the_same_bytes(storage: Storage) -> None:
    data = bytes(range(256)) * (40 << 10)
    storage.write("big.bin", data)
    with storage.local("big.bin") as path:
        assert path.read_bytes() == data
    assert paths(storage) == ["big.bin"]


def test_the_clock_is_that_of_the_files(storage: Storage) -> None:
    storage.write("first", b"")  # a folder is made by its first file
    before = storage.clock()
    storage.write("file", b"x")
    entry = storage.stat("file")
    assert entry is not None
    assert before - 2 <= entry.modified <= storage.clock() + 2
    assert paths(storage) == ["file", "first"]


def test_time_passes_on_the_clock(storage: Storage) -> None:
    before = storage.clock()
    time.sleep(0.05)
    assert storage.clock() - before > 0


@pytest.mark.parametrize(
    ("root", "named"),
    [
        ("ftp://host/data", "ftp:// is not known; use one of s3, gs, az, http, https"),
        ("s3://", "s3://: not a usable address"),
        ("s3://bucket//data", "empty path segment"),
        ("az://container/data", "AZURE_STORAGE_ACCOUNT_NAME is not set"),
    ],
)
def test_a_url_that_cannot_be_one_is_refused(root: str, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AZURE_STORAGE_ACCOUNT_NAME", raising=False)
    with pytest.raises(InputError, match=named):
        open_storage(root)


def test_a_path_is_a_folder(tmp_path: Path) -> None:
    assert isinstance(open_storage(str(tmp_path)), Folder)
    assert isinstance(open_storage(tmp_path), Folder)
