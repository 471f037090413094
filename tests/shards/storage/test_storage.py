from __future__ import annotations

import errno
import os
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from shards.errors import InputError
from shards.storage import Folder, Storage, open_storage
from tests.support.servers import AZURITE, NO_AZURITE, Fault, azurite, proxy


@pytest.fixture(scope="module")
def azure() -> Iterator[dict[str, str]]:
    """The variables that lead to an Azure server with the container `box`."""
    if AZURITE is None:
        pytest.skip(NO_AZURITE)
    with azurite() as environment:
        yield environment


@pytest.fixture(params=["folder", "s3", "azure"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A storage of each kind, with nothing in it."""
    if request.param == "folder":
        return open_storage(tmp_path / "root")
    if request.param == "azure":
        for name, value in request.getfixturevalue("azure").items():
            monkeypatch.setenv(name, value)
        return open_storage(f"az://box/{uuid.uuid4().hex}/some/prefix")
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


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(tmp_path)
    for name in ("a/1", "b/1"):
        storage.write(name, b"")
    scan = os.scandir

    def broken(path: os.PathLike[str]) -> object:
        if Path(path).name == "b":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(OSError, match="Input/output error") as error:
        storage.list()
    assert error.value.filename == str(tmp_path / "b")


def test_links_to_folders_and_files_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    other = open_storage(tmp_path / "other")
    for name in ("1.tar", "deep/2.tar"):
        other.write(name, b"xx")
    root = tmp_path / "root"
    (root / "shards").mkdir(parents=True)
    (root / "shards/half").symlink_to(tmp_path / "other")
    (root / "shards/again").symlink_to("half")
    (root / "shards/3.tar").symlink_to(tmp_path / "other/1.tar")
    (root / "shards/up").symlink_to("..")
    (tmp_path / "other/deep/circle").symlink_to(root)
    expected = ["again/1.tar", "again/deep/2.tar", "half/1.tar", "half/deep/2.tar"]
    assert paths(open_storage(root), "shards") == ["shards/3.tar", *(f"shards/{name}" for name in expected)]
    assert all(entry.size == 2 for entry in open_storage(root).list())


def test_each_file_of_a_listing_is_asked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = open_storage(tmp_path)
    for number in range(5):
        storage.write(f"{number}", b"")
    asked: list[object] = []
    stat = os.stat
    monkeypatch.setattr(
        os, "stat", lambda path, *rest, **named: asked.append(path) or stat(path, *rest, **named)
    )
    assert len(storage.list()) == 5
    assert asked == [tmp_path]  # the files' own are asked of the directory's entries


@pytest.mark.parametrize("fault", [errno.EPERM, errno.ENOTSUP])
def test_a_file_is_created_once_where_there_are_no_hard_links(
    fault: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(source: Path, target: Path) -> None:
        raise OSError(fault, os.strerror(fault), str(source), None, str(target))

    monkeypatch.setattr(os, "link", refused)
    storage = open_storage(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda i: storage.create("x", b"%d" % i), range(8)))
    assert sum(won) == 1
    assert storage.read("x") == b"%d" % won.index(True)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(("mask", "mode"), [(0o002, 0o664), (0o077, 0o600)])
def test_the_mode_of_files_is_what_the_user_set(mask: int, mode: int, tmp_path: Path) -> None:
    storage, before = open_storage(tmp_path), os.umask(mask)
    try:
        storage.create("created", b"")
        storage.write("written", b"")
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {mode}


@pytest.mark.parametrize("fault", [errno.EINVAL, errno.ENOTSUP])
def test_a_file_system_that_cannot_sync_folders_is_written_to(
    fault: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sync = os.fsync

    def refused(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}"):
            raise OSError(fault, os.strerror(fault))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", refused)
    open_storage(tmp_path).write("file", b"data")
    assert open_storage(tmp_path).read("file") == b"data"


def test_a_disk_that_fails_to_sync_a_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(OSError, match="Input/output error"):
        open_storage(tmp_path).write("file", b"data")


def test_a_pipe_is_no_file_and_nobody_waits_for_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    storage = open_storage(tmp_path)
    found: list[BaseException] = []

    def ask() -> None:
        try:
            storage.fill("pipe", 0, memoryview(bytearray(3)))
        except OSError as error:
            found.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(10)
    assert [str(error) for error in found] == [f"[Errno 2] not a regular file: '{tmp_path}/pipe'"]
    assert storage.list() == []


def test_a_sweep_takes_what_nobody_writes_to(tmp_path: Path) -> None:
    storage, folder = open_storage(tmp_path), tmp_path / "shards"
    storage.write("shards/a", b"")
    for name, age in (("old", 1000), ("new", 0)):
        path = folder / f".{name}.tmp"
        path.write_bytes(b"x")
        os.utime(path, (time.time() - age,) * 2)
    storage.sweep("shards", age=100)
    assert sorted(path.name for path in folder.iterdir()) == [".new.tmp", "a"]
    storage.sweep("shards")
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_google_is_asked_where_its_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, s3: str
) -> None:
    # No server that can be installed speaks Google's XML: what is asked is looked at, and refused.
    monkeypatch.setenv("GOOGLE_SKIP_SIGNATURE", "true")
    monkeypatch.setenv("GOOGLE_ALLOW_HTTP", "true")
    with proxy(s3) as front:
        monkeypatch.setenv("GOOGLE_BASE_URL", front.url)
        front.faults.append(Fault("status", code=403))
        with pytest.raises(
            InputError, match=r"^gs://box/set/file: access denied .*GOOGLE_APPLICATION_CREDENTIALS"
        ):
            open_storage("gs://box/set").fill("file", 2, memoryview(bytearray(3)))
        assert [(asked.method, asked.path, asked.range) for asked in front.requests] == [
            ("GET", "/box/set%2Ffile", "bytes=2-4")
        ]
    key = tmp_path / "key.json"
    key.write_text("{}")
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key))
    with pytest.raises(InputError, match=r"gs://box/set: not a usable address: .*service account"):
        open_storage("gs://box/set")


def test_a_path_is_a_folder(tmp_path: Path) -> None:
    assert isinstance(open_storage(str(tmp_path)), Folder)
    assert isinstance(open_storage(tmp_path), Folder)
