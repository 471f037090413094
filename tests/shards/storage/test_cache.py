from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset.opened import Dataset, open_dataset
from shards.errors import DamagedSample, InputError
from shards.reader import Reader
from shards.storage.cache import Cache
from tests.support.datasets import write_dataset
from tests.support.runs import ROOT
from tests.support.servers import proxy

MANY = 1 << 30


def files(folder: Path, suffix: str = ".sample") -> list[Path]:
    return sorted((folder / "ltx-samples").glob(f"*{suffix}"))


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def got(cache: Cache, name: str, size: int) -> bytes | None:
    buffer = bytearray(size)
    return bytes(buffer) if cache.get(name, memoryview(buffer)) else None


def test_what_is_kept_is_found_by_another_process_of_the_node(tmp_path: Path) -> None:
    first, second = Cache(tmp_path, MANY), Cache(tmp_path, MANY)
    first.put("a", memoryview(b"123"))
    assert got(second, "a", 3) == b"123"
    assert got(second, "b", 3) is None
    assert got(second, "a", 4) is None


def test_a_name_written_again_has_the_new_bytes(tmp_path: Path) -> None:
    cache = Cache(tmp_path, MANY)
    cache.put("a", memoryview(b"123"))
    cache.put("a", memoryview(b"456"))
    assert got(cache, "a", 3) == b"456"


def forget(folder: Path) -> None:
    """Take the ledger away, so that the files are counted."""
    (folder / "ltx-samples" / "ledger").unlink()


def age(folder: Path, seconds: float) -> None:
    for path in files(folder):
        os.utime(path, (path.stat().st_atime - seconds, path.stat().st_mtime - seconds))


def test_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10_000)
    for name in "abcdefghi":
        cache.put(name, memoryview(bytes(1000)))
        age(tmp_path, 10)
    assert got(cache, "a", 1000)
    cache.put("long", memoryview(bytes(3000)))
    kept = [name for name in "abcdefghi" if got(cache, name, 1000)]
    assert kept == ["a", "e", "f", "g", "h", "i"]
    assert got(cache, "long", 3000)


@settings(max_examples=30, deadline=None)
@given(sizes=st.lists(st.integers(0, 4000), min_size=1, max_size=60), limit=st.integers(1, 20_000))
def test_the_limit_is_kept_and_what_is_found_is_right(
    sizes: list[int], limit: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("cache")
    cache = Cache(folder, limit)
    contents = {str(number): random.Random(number).randbytes(size) for number, size in enumerate(sizes)}
    for name, data in contents.items():
        cache.put(name, memoryview(data))
        assert used(folder) <= limit
    for name, data in contents.items():
        assert got(cache, name, len(data)) in (None, data)
    cache.close()


def test_a_lower_limit_takes_effect_when_the_cache_is_opened(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10_000)
    for name in "abcdefgh":
        cache.put(name, memoryview(bytes(1000)))
    Cache(tmp_path, 4000)
    assert used(tmp_path) <= 4000


def test_files_of_others_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    mine = tmp_path / "thesis.tmp"
    mine.write_bytes(bytes(100))
    os.utime(mine, (0, 0))
    cache = Cache(tmp_path, 10)
    cache.put("a", memoryview(bytes(9)))
    cache.put("b", memoryview(bytes(9)))
    assert mine.read_bytes() == bytes(100)


def test_what_a_killed_process_left_is_cleared_and_no_longer_counted(tmp_path: Path) -> None:
    Cache(tmp_path, 1000).put("a", memoryview(bytes(400)))
    old, new = (tmp_path / "ltx-samples" / f".{name}.tmp" for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(bytes(100))
    os.utime(old, (time.time() - 3600,) * 2)
    (tmp_path / "ltx-samples" / "ledger").write_bytes(b"garbage")
    cache = Cache(tmp_path, 1000)
    assert not old.exists()
    assert new.exists()  # its process may be writing it just now
    cache.put("b", memoryview(bytes(400)))
    assert len(files(tmp_path)) == 2
    cache.put("c", memoryview(bytes(200)))
    assert used(tmp_path) == 600


def test_a_ledger_that_says_too_much_is_put_right_by_a_count(tmp_path: Path) -> None:
    cache = Cache(tmp_path, 10_000)
    ledger = tmp_path / "ltx-samples" / "ledger"
    ledger.write_bytes((1 << 60).to_bytes(8, "little") + ledger.read_bytes()[8:])
    for name in "abcdefgh":
        cache.put(name, memoryview(bytes(1000)))
    assert len(files(tmp_path)) == 8


def test_files_are_counted_only_where_the_ledger_does_not_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Cache(tmp_path, 10_000)
    first.put("a", memoryview(bytes(1000)))
    counts: list[object] = []
    scan = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: counts.append(path) or scan(path))
    Cache(tmp_path, 10_000)
    assert counts == []
    Cache(tmp_path, 500)
    assert len(counts) == 1
    forget(tmp_path)
    Cache(tmp_path, 10_000)
    assert len(counts) == 2


def test_a_ledger_from_before_the_machine_started_is_not_believed(tmp_path: Path) -> None:
    Cache(tmp_path, 10_000).put("a", memoryview(bytes(3000)))
    ledger = tmp_path / "ltx-samples" / "ledger"
    ledger.write_bytes(bytes(8) + b"x" * 8)  # it says nothing is in use
    cache = Cache(tmp_path, 10_000)
    cache.put("b", memoryview(bytes(8000)))
    assert used(tmp_path) == 8000


def test_a_cache_that_is_closed_touches_no_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path / "cache", 10_000)
    cache.close()
    with open(tmp_path / "other", "w+b") as other:  # it takes the number that the ledger had
        other.write(b"precious")
        other.flush()
        cache.put("a", memoryview(b"123"))
        cache.close()
        assert (tmp_path / "other").read_bytes() == b"precious"
        os.fstat(other.fileno())
    assert files(tmp_path / "cache") == []


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cache folder .*/file cannot be used: Not a directory"):
        Cache(tmp_path / "file", 1000)


def test_a_full_disk_is_said_once_and_nothing_else_happens(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    size = 1 << 20
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", tmp_path], check=False)
    if mounted.returncode:
        pytest.skip("no right to mount a small file system")
    try:
        cache = Cache(tmp_path, MANY)
        for name in ("a", "b", "c", "d"):
            cache.put(name, memoryview(bytes(size // 3 - 10_000)))
        found = [name for name in "abcd" if got(cache, name, size // 3 - 10_000)]
        assert found in (["a", "b"], ["a", "b", "c"])
        cache.put("e", memoryview(bytes(size)))
        assert capfd.readouterr().err.count("No space left on device") == 1
        assert files(tmp_path, ".tmp") == []
        cache.close()
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_disk_that_became_read_only_is_said_and_nothing_else_happens(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cache = Cache(tmp_path, MANY)
    cache.put("a", memoryview(b"123"))
    if subprocess.run(["mount", "--bind", tmp_path, tmp_path], check=False).returncode:
        pytest.skip("no right to mount")
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", tmp_path], check=True)
        cache.put("b", memoryview(b"456"))
        assert got(cache, "a", 3) == b"123"
        assert capfd.readouterr().err.count("Read-only file system; reading goes on without") == 1
    finally:
        subprocess.run(["umount", tmp_path], check=True)


# A process that keeps and finds files of known contents until it is killed; `wrong` is printed if any is not right.
WORKER = """
import random, sys
from pathlib import Path
from shards.storage.cache import Cache

cache, chance = Cache(Path(sys.argv[1]), int(sys.argv[2])), random.Random(int(sys.argv[3]))
print("ready", flush=True)
while True:
    number = chance.randrange(200)
    data = random.Random(number).randbytes(1000 + 100 * number)
    buffer = bytearray(len(data))
    if cache.get(str(number), memoryview(buffer)):
        if buffer != data:
            print("wrong", number, flush=True)
    else:
        cache.put(str(number), memoryview(data))
"""


def test_processes_that_share_a_cache_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    limit, chance = 500_000, random.Random(0)

    def start(seed: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", WORKER, str(tmp_path), str(limit), str(seed)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert process.stdout
        assert process.stdout.readline() == b"ready\n"
        return process

    workers, said = [start(seed) for seed in range(3)], b""
    try:
        for seed in range(3, 13):
            time.sleep(chance.uniform(0, 0.1))
            victim = workers.pop(0)
            victim.kill()
            said += victim.communicate()[0]
            for worker in workers:  # what changes meanwhile cannot be counted
                worker.send_signal(signal.SIGSTOP)
                os.waitid(os.P_PID, worker.pid, os.WSTOPPED)
            # Each process may be writing one file that a count before it did not see.
            assert used(tmp_path) <= limit + 4 * 21_000
            for worker in workers:
                worker.send_signal(signal.SIGCONT)
            workers.append(start(seed))
    finally:
        for worker in workers:
            worker.kill()
            said += worker.communicate()[0]
    assert said == b""
    for path in files(tmp_path, ".tmp"):
        os.utime(path, (0, 0))
    forget(tmp_path)
    cache = Cache(tmp_path, limit)
    assert files(tmp_path, ".tmp") == []
    assert len(files(tmp_path)) > 10
    for number in range(200):
        data = random.Random(number).randbytes(1000 + 100 * number)
        assert got(cache, str(number), len(data)) in (None, data)


@pytest.fixture
def near(tmp_path: Path) -> Dataset:
    return write_dataset(tmp_path / "near", 30, shard_bytes=16 << 10)


def assert_all_right(dataset: Dataset, reader: Reader) -> None:
    with Reader(dataset) as plain:
        for one, other in zip(reader.read(range(30)), plain.read(range(30)), strict=True):
            assert one.key == other.key
            assert torch.equal(one.latents, other.latents)
            assert torch.equal(one.prompt_embeds, other.prompt_embeds)


def test_a_sample_is_fetched_once_for_all_processes_of_a_node(
    near: Dataset, s3: str, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far = write_dataset(bucket, 30, shard_bytes=16 << 10)
    with proxy(s3) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.url)
        for _ in range(2):
            with Reader(far, cache=Cache(tmp_path / "cache", MANY)) as reader:
                assert_all_right(near, reader)
        assert len(front.requests) == 30


def test_a_damaged_file_of_the_cache_is_fetched_again(near: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    with Reader(near, verify=False, cache=Cache(folder, MANY)) as reader:
        reader.read(range(30))
        kept = files(folder)
        for path in kept[:3]:
            path.write_bytes(bytes(path.stat().st_size))  # what a crash of the machine may leave
        kept[3].write_bytes(b"short")
        kept[4].unlink()
        assert_all_right(near, reader)
        assert all(any(path.read_bytes()[:100]) for path in kept)


def test_a_dataset_written_anew_is_not_taken_from_the_cache_of_the_old_one(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    for seed in (1, 2):
        dataset = write_dataset(tmp_path / f"{seed}", 30, seed=seed)
        (tmp_path / "data").unlink(missing_ok=True)
        (tmp_path / "data").symlink_to(dataset.root)
        with Reader(open_dataset(tmp_path / "data"), cache=Cache(cache, MANY)) as reader:
            assert_all_right(dataset, reader)


def test_bytes_that_are_wrong_at_the_source_are_not_kept(near: Dataset, tmp_path: Path) -> None:
    manifest = near.manifest
    wrong = replace(near, manifest=replace(manifest, checksum=manifest.checksum + 1))
    with Reader(wrong, cache=Cache(tmp_path / "cache", MANY)) as reader:
        assert all(isinstance(found, DamagedSample) for found in reader.read_each(range(30)))
    assert files(tmp_path / "cache") == []


def test_a_cache_smaller_than_the_dataset_serves_threads_at_once(near: Dataset, tmp_path: Path) -> None:
    limit = int(near.manifest.nbytes.sum()) // 3
    with Reader(near, cache=Cache(tmp_path / "cache", limit)) as reader, ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            list(pool.map(lambda _: assert_all_right(near, reader), range(4)))
            # Each thread may have been writing one file that a count before it did not see.
            assert used(tmp_path / "cache") <= limit + 8 * int(near.manifest.nbytes.max())
