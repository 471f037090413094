from __future__ import annotations

import os
import shutil
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch

from shards.dataset.opened import Dataset, open_dataset
from shards.errors import DamagedSample, InputError, ShardError
from shards.formats.sample import Sample
from shards.reader import Reader
from shards.storage import check_writable, open_storage
from shards.storage.objects import RETRY, ObjectStorage
from tests.support.datasets import write_dataset
from tests.support.runs import free_port
from tests.support.servers import NGINX, NO_NGINX, Fault, Proxy, nginx, proxy, s3_environment, without_ranges

QUICK = RETRY | {"max_retries": 3, "backoff": {"init_backoff": timedelta(seconds=0.01), "base": 2}}
DATA = bytes(range(256)) * 2000


@pytest.fixture
def front(s3: str, bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy through which this process's environment leads to the S3 server."""
    with proxy(s3) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        yield made


@pytest.fixture
def objects(front: Proxy, bucket: str) -> ObjectStorage:
    """A storage behind the proxy that holds DATA as `file`, and gives up soon."""
    storage = ObjectStorage(f"{bucket}/set", QUICK)
    storage.write("file", DATA)
    front.requests.clear()
    return storage


def part(storage: ObjectStorage) -> bytes:
    buffer = bytearray(300_000)
    found = storage.fill("file", 1000, memoryview(buffer))
    return bytes(buffer[:found])


def download(storage: ObjectStorage) -> bytes:
    with storage.local("file") as path:
        return path.read_bytes()


READS: dict[str, tuple[Callable[[ObjectStorage], object], object]] = {
    "read": (lambda storage: storage.read("file"), DATA),
    "fill": (part, DATA[1000:301_000]),
    "local": (download, DATA),
    "list": (lambda storage: [entry.path for entry in storage.list()], ["file"]),
}
PASSING = [
    Fault("reset"),
    Fault("reset", times=2),
    Fault("lose"),
    Fault("status", code=503),
    Fault("status", code=500, times=3),
    Fault("status", code=429),
    Fault("truncate"),
    Fault("truncate", times=2),
]


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: f"{f.kind}-{f.code}-{f.times}")
@pytest.mark.parametrize("name", READS)
def test_a_read_gets_over_a_passing_fault(
    objects: ObjectStorage, front: Proxy, name: str, fault: Fault
) -> None:
    ask, expected = READS[name]
    front.faults.append(replace(fault))
    assert ask(objects) == expected
    assert len(front.requests) == 1 + fault.times


@pytest.mark.parametrize("kind", ["reset", "lose", "status", "truncate"])
def test_an_upload_gets_over_a_passing_fault(objects: ObjectStorage, front: Proxy, kind: str) -> None:
    data = os.urandom(20 << 20)
    front.faults.append(Fault(kind, methods=("PUT",)))  # type: ignore[arg-type]
    objects.write("small", DATA)
    front.faults += [Fault(kind, methods=("PUT",)), Fault(kind, match="uploadId", methods=("POST",))]  # type: ignore[arg-type]
    with objects.writer("large") as file:
        file.write(data)
    assert objects.read("small") == DATA
    assert objects.read("large") == data


@pytest.mark.parametrize("kind", ["reset", "lose", "status"])
def test_who_created_an_object_is_known_even_when_the_answer_is_lost(
    objects: ObjectStorage, front: Proxy, kind: str
) -> None:
    front.faults.append(Fault(kind, methods=("PUT",)))  # type: ignore[arg-type]
    assert objects.create("claim", b"same")
    assert not objects.create("claim", b"same")


def test_an_upload_that_fails_for_good_is_aborted_and_named(objects: ObjectStorage, front: Proxy) -> None:
    front.faults.append(Fault("status", "partNumber", times=99, methods=("PUT",)))

    def upload() -> None:
        with objects.writer("large") as file:
            file.write(os.urandom(20 << 20))

    with pytest.raises(InputError, match=rf"^{objects.name}/large: .*503 Service Unavailable"):
        upload()
    assert "DELETE" in [request.method for request in front.requests]
    assert [entry.path for entry in objects.list()] == ["file"]


def test_no_temporary_file_is_left_even_by_a_killed_process(objects: ObjectStorage, tmp_path: Path) -> None:
    before = tempfile.tempdir
    tempfile.tempdir = str(tmp_path)
    try:
        with objects.writer("large") as file:
            file.write(DATA)
            assert list(tmp_path.iterdir()) == []
        with objects.local("large") as path:
            assert list(tmp_path.iterdir()) == []
            assert path.read_bytes() == DATA
    finally:
        tempfile.tempdir = before


@pytest.mark.parametrize(
    ("fault", "cause"),
    [
        (Fault("status", code=403), "access denied .*AWS_ACCESS_KEY_ID"),
        (Fault("status", code=401), "access denied .*AWS_ACCESS_KEY_ID"),
        (Fault("status", code=503), "503 Service Unavailable"),
        (Fault("reset"), "error sending request"),
        (Fault("truncate"), "response body"),
    ],
    ids=lambda value: f"{value.kind}-{value.code}" if isinstance(value, Fault) else "",
)
@pytest.mark.parametrize("name", READS)
def test_a_lasting_fault_names_the_object_and_the_cause_in_one_line(
    objects: ObjectStorage, front: Proxy, name: str, fault: Fault, cause: str
) -> None:
    front.faults.append(replace(fault, times=99))
    file = "" if name == "list" else "file"
    with pytest.raises(InputError, match=rf"^{objects.name}/{file}: .*{cause}") as error:
        READS[name][0](objects)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 700


def test_retries_wait_longer_and_longer(objects: ObjectStorage, front: Proxy, bucket: str) -> None:
    storage = ObjectStorage(f"{bucket}/set")  # as users have it
    for ask, kind, least in ((storage.read, "status", (0.1, 0.1)), (storage.list, "truncate", (0.1, 0.3))):
        front.requests.clear()
        front.faults.append(Fault(kind, times=2))  # type: ignore[arg-type]
        ask("file" if kind == "status" else "")
        first, second, third = (request.at for request in front.requests)
        assert second - first >= least[0]
        assert third - second >= least[1]


def test_a_server_that_stands_still_is_given_up_and_named(
    front: Proxy, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shards.storage.objects.READ_TIMEOUT", timedelta(seconds=0.4))
    storage = ObjectStorage(f"{bucket}/set", QUICK | {"max_retries": 1})
    storage.write("file", DATA)
    front.faults.append(Fault("stall", "file", times=1, seconds=3))
    assert part(storage) == DATA[1000:301_000]
    front.requests.clear()
    front.faults.append(Fault("stall", "file", times=2, methods=("GET", "HEAD"), seconds=3))
    began = time.monotonic()
    with pytest.raises(InputError, match=rf"^{storage.name}/file: .*performing GET"):
        part(storage)
    assert time.monotonic() - began < 3
    assert [request.method for request in front.requests] == ["GET", "GET"]


def test_no_password_of_a_url_is_shown() -> None:
    url = "http://me:secret@127.0.0.1:9/set"
    storage = ObjectStorage(url, QUICK | {"max_retries": 0})
    with pytest.raises(InputError, match=r"^http://\*\*\*@127.0.0.1:9/set/file: ") as error:
        storage.read("file")
    for refused in ("ftp://me:secret@host/set", "s3://me:secret@/set"):
        with pytest.raises(InputError) as other:
            ObjectStorage(refused)
        assert "secret" not in str(other.value)
    assert "secret" not in f"{storage.name} {error.value}"


def test_probes_of_the_clock_that_were_left_are_swept(bucket: str) -> None:
    storage = ObjectStorage(bucket)
    for name in (".clock.1.tmp", "shards/.clock.2.tmp", "file"):
        storage.write(name, b"")
    storage.sweep("", age=3600)
    assert storage.stat(".clock.1.tmp")
    storage.sweep("")
    left = (name for name in (".clock.1.tmp", "shards/.clock.2.tmp", "file") if storage.stat(name))
    assert list(left) == ["shards/.clock.2.tmp", "file"]


def test_a_listing_of_many_objects_is_whole(bucket: str) -> None:
    storage = open_storage(bucket)
    names = [f"units/{number:06d}" for number in range(1010)]  # S3 gives a thousand at a time
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda name: storage.write(name, b""), names))
    assert [entry.path for entry in storage.list("units")] == names


@pytest.fixture(scope="module")
def near(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset in a folder."""
    root = tmp_path_factory.mktemp("near") / "set"
    return write_dataset(root, 40, references=[None, (1, 2, 2)], shard_bytes=16 << 10)


def upload(dataset: Dataset, root: str) -> None:
    folder, storage = open_storage(dataset.root), open_storage(root)
    for entry in folder.list():
        storage.write(entry.path, folder.read(entry.path))


def assert_same(left: list[Sample], right: list[Sample]) -> None:
    for one, other in zip(left, right, strict=True):
        assert (one.key, one.id, one.fps) == (other.key, other.id, other.fps)
        assert torch.equal(one.latents, other.latents)
        assert torch.equal(one.prompt_embeds, other.prompt_embeds)
        assert all(map(torch.equal, one.references, other.references))
        assert len(one.references) == len(other.references)


@pytest.fixture
def far(near: Dataset, front: Proxy, bucket: str) -> Dataset:
    """The same dataset in a bucket behind the proxy."""
    upload(near, f"{bucket}/set")
    front.requests.clear()
    return open_dataset(f"{bucket}/set")


def test_a_dataset_in_a_bucket_is_the_one_in_the_folder(near: Dataset, far: Dataset) -> None:
    assert far.info == near.info
    assert far.manifest.fingerprint == near.manifest.fingerprint
    with Reader(near) as local, Reader(far) as remote:
        assert_same(remote.read(range(40)), local.read(range(40)))
        assert_same(remote.read([7, 3, 7]), local.read([7, 3, 7]))


def test_a_dataset_can_be_written_into_a_bucket(near: Dataset, bucket: str) -> None:
    made = write_dataset(f"{bucket}/made", 6)
    assert (
        made.manifest.fingerprint == write_dataset(Path(near.root).parent / "again", 6).manifest.fingerprint
    )
    with Reader(made) as reader:
        assert len(reader.read(range(6))) == 6


def test_reading_asks_for_the_bytes_of_the_samples_and_no_others(far: Dataset, front: Proxy) -> None:
    front.requests.clear()
    rows = [3, 17, 18, 39]
    with Reader(far) as reader:
        reader.read(rows)
    manifest = far.manifest
    expected = {
        (
            manifest.shards[manifest.shard[row]],
            f"bytes={manifest.offset[row]}-{manifest.offset[row] + manifest.nbytes[row] - 1}",
        )
        for row in rows
    }
    found = {(request.path.partition("/set/")[2], request.range) for request in front.requests}
    assert found == expected
    assert len(front.requests) == len(rows)


def test_many_samples_are_fetched_at_once(far: Dataset, front: Proxy) -> None:
    # Nobody gets an answer before all thirty-two have asked.
    front.faults.append(Fault("gather", times=32, barrier=threading.Barrier(32)))
    with Reader(far) as reader:
        assert len(reader.read(range(32))) == 32


@pytest.mark.parametrize("kind", ["reset", "status", "truncate", "corrupt"])
def test_reading_gets_over_passing_faults(near: Dataset, far: Dataset, front: Proxy, kind: str) -> None:
    front.faults.append(Fault(kind, "shards/", times=1))  # type: ignore[arg-type]
    with Reader(near) as local, Reader(far) as remote:
        assert_same(remote.read(range(40)), local.read(range(40)))
    assert not front.faults[0].times


def test_a_sample_that_stays_damaged_is_told_from_the_others(
    near: Dataset, far: Dataset, front: Proxy
) -> None:
    shard = near.manifest.shards[near.manifest.shard[9]]
    storage = open_storage(far.root)
    whole = bytearray(storage.read(shard))
    whole[int(near.manifest.offset[9]) + 50] ^= 1
    storage.write(shard, bytes(whole))
    with Reader(near) as local, Reader(far) as remote:
        found = remote.read_each([8, 9, 10])
        assert isinstance(found[1], DamagedSample)
        assert (found[1].key, found[1].what) == (near.manifest.keys[9], "xxh3_64 checksum")
        assert_same([found[0], found[2]], local.read([8, 10]))  # type: ignore[list-item]
        with pytest.raises(DamagedSample, match="xxh3_64 checksum"):
            remote.read([8, 9, 10])


def test_a_missing_object_stops_both_reads_and_is_named(far: Dataset) -> None:
    open_storage(far.root).remove("shards/000000.tar")
    with Reader(far) as reader:
        for read in (reader.read, reader.read_each):
            with pytest.raises(
                ShardError, match=rf"reading the object: .*{far.root}/shards/000000.tar: .*404"
            ) as error:
                read([0, 39])
            assert not isinstance(error.value, DamagedSample)
            assert error.value.key == far.manifest.keys[0]


def test_an_object_cut_short_is_a_damaged_sample(near: Dataset, far: Dataset) -> None:
    storage = open_storage(far.root)
    storage.write(
        "shards/000000.tar", storage.read("shards/000000.tar")[: int(near.manifest.offset[0]) + 100]
    )
    with Reader(far) as reader:
        first, second = reader.read_each([0, 1])
    assert isinstance(first, DamagedSample)
    assert (first.what, first.found) == ("bytes before the end of the file", 100)
    assert isinstance(second, DamagedSample)
    assert second.found == 0


@pytest.mark.parametrize(
    ("path", "code", "named"),
    [
        ("dataset.json", 404, "{root}/dataset.json is missing"),
        ("dataset.json", 403, "{root}/dataset.json: access denied"),
        (
            "manifest.parquet",
            404,
            "{root}/manifest.parquet is missing: rebuild it with `ltx-shards index {root}`",
        ),
        ("manifest.parquet", 403, "{root}/manifest.parquet: access denied"),
    ],
)
def test_a_dataset_that_cannot_be_opened_says_why(
    far: Dataset, front: Proxy, path: str, code: int, named: str
) -> None:
    front.faults.append(Fault("status", path, times=99, code=code))
    with pytest.raises(InputError) as error:
        open_dataset(far.root)
    assert str(error.value).startswith(named.format(root=far.root))


def test_a_bucket_that_is_not_there_is_named(s3: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3_environment(s3).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InputError, match=r"s3://no-such-bucket/set/dataset.json is missing"):
        open_dataset("s3://no-such-bucket/set")
    storage = open_storage("s3://no-such-bucket/set")
    for write in (storage.write, storage.create):
        with pytest.raises(
            InputError, match=r"s3://no-such-bucket/set/a: .*The specified bucket does not exist"
        ):
            write("a", b"")


@pytest.fixture
def web(near: Dataset, tmp_path: Path) -> Iterator[str]:
    """The same dataset behind a web server."""
    if NGINX is None:
        pytest.skip(NO_NGINX)
    shutil.copytree(near.root, tmp_path / "www" / "my set")
    with nginx(tmp_path / "www", tmp_path / "nginx") as url:
        yield url


def test_a_dataset_behind_a_web_server_is_the_one_in_the_folder(near: Dataset, web: str) -> None:
    far = open_dataset(f"{web}/my%20set")
    with Reader(near) as local, Reader(far) as remote:
        assert_same(remote.read(range(40)), local.read(range(40)))
    storage = open_storage(f"{web}/my%20set/")
    shard = near.manifest.shards[0]
    here = open_storage(near.root).stat(shard)
    assert here is not None
    assert storage.stat(shard) == here._replace(modified=int(here.modified))
    assert storage.fill(shard, here.size - 3, memoryview(bytearray(10))) == 3
    assert storage.fill(shard, here.size, memoryview(bytearray(10))) == 0


@pytest.mark.parametrize("fault", PASSING, ids=lambda f: f"{f.kind}-{f.code}-{f.times}")
def test_reading_from_a_web_server_gets_over_passing_faults(near: Dataset, web: str, fault: Fault) -> None:
    with proxy(web) as front:
        far = open_dataset(f"{front.url}/my%20set")
        front.faults.append(replace(fault))
        with Reader(near) as local, Reader(far) as remote:
            assert_same(remote.read(range(40)), local.read(range(40)))
        assert not front.faults[0].times


def test_a_web_server_is_only_read(web: str) -> None:
    storage = open_storage(f"{web}/my%20set")
    for call in (
        lambda: storage.write("x", b""),
        lambda: storage.create("x", b""),
        lambda: storage.remove("x"),
        lambda: storage.writer("x").__enter__(),
    ):
        with pytest.raises(InputError, match=r"/my%20set/x: a web server is read-only here"):
            call()
    with pytest.raises(InputError, match="a web server does not list its files"):
        storage.list()
    assert urllib.request.urlopen(f"{web}/my%20set/dataset.json", timeout=20).status == 200


def test_a_web_server_without_ranges_is_told_at_once(tmp_path: Path) -> None:
    write_dataset(tmp_path, 3)
    with without_ranges(tmp_path) as url:
        far = open_dataset(url)
        for read in (
            lambda: Reader(far),
            lambda: open_storage(url).fill(far.manifest.shards[0], 0, memoryview(bytearray(5))),
        ):
            with pytest.raises(InputError) as error:
                read()
            assert str(error.value) == (
                f"{url}: this server does not answer byte ranges: serve the dataset with nginx or from an object "
                "store, or copy it here"
            )


def test_where_no_server_is_that_is_said() -> None:
    url = f"http://127.0.0.1:{free_port()}/set"
    with pytest.raises(InputError) as error:
        ObjectStorage(url, {**RETRY, "max_retries": 0}).stat("dataset.json")
    assert str(error.value).startswith(
        f"{url}/dataset.json: no server answers there: check the address and the network ("
    )


def test_a_web_server_is_refused_as_a_target_before_it_is_asked() -> None:
    for url in ("http://127.0.0.1:1/x", "https://127.0.0.1:1/x"):
        with pytest.raises(InputError, match=f"^{url}: a web server is only read: write to a folder, s3://"):
            check_writable(url)
    for root in ("s3://bucket/x", "folder", Path("http://x")):
        check_writable(root)
