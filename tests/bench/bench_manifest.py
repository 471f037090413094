"""Speed of the manifest, the index and the doctor, as ratios to what the libraries below take for the same data.

    python -m tests.bench.bench_manifest --samples 1000000 --megabytes 512

The table is compared with pyarrow writing and reading the same columns, nothing done to them. Index and doctor
are compared with reading the shards through one buffer and hashing them, from a warm page cache, and for small
samples with what `tarfile` takes to list them.
"""

from __future__ import annotations

import argparse
import os
import resource
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import xxhash

from shards.dataset.index import index
from shards.dataset.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from shards.dataset.opened import Dataset
from shards.doctor.diagnose import diagnose
from shards.doctor.finding import Findings
from shards.doctor.survey import Candidates, survey
from shards.formats.row import Row
from shards.geometry import Grid
from tests.bench.bench_reader import GRIDS, TEXT_LENGTHS
from tests.support.datasets import write_dataset

SHARD_SAMPLES = 150


def rows_of(samples: int) -> list[Row]:
    """Rows as an index of many shards finds them; every third has a reference."""
    sizes = [Grid(*grid) for grid in GRIDS]
    return [
        Row(
            key=f"footage/take_{number // 1000:05d}/clip_{number:08d}",
            shard=f"shards/{number // SHARD_SAMPLES:06d}.tar",
            offset=number % SHARD_SAMPLES * 1_700_000,
            nbytes=1_600_000 + number % 997,
            checksum=xxhash.xxh3_64_intdigest(number.to_bytes(8, "little")),
            grid=sizes[number % len(sizes)],
            text_tokens=TEXT_LENGTHS[number % len(TEXT_LENGTHS)],
            fps=24.0,
            channels=128,
            text_width=4096,
            references=(sizes[number % len(sizes)],) if number % 3 == 0 else (),
        )
        for number in range(samples)
    ]


def timed(method: Callable[[], object], repeats: int = 3) -> float:
    """Best wall-clock seconds."""
    best = float("inf")
    for _ in range(repeats):
        begin = time.perf_counter()
        method()
        best = min(best, time.perf_counter() - begin)
    return best


def bench_table(folder: Path, samples: int) -> None:
    begin = time.perf_counter()
    rows = rows_of(samples)
    made, memory = time.perf_counter() - begin, peak()
    build = timed(lambda: Manifest.from_rows(rows))
    manifest = Manifest.from_rows(rows)
    rows.clear()
    write_manifest(folder, manifest)
    table = pq.read_table(folder / MANIFEST_NAME)
    plain = folder / "plain.parquet"
    pyarrow_write = timed(lambda: pq.write_table(table, plain, compression="zstd", row_group_size=1 << 20))
    pyarrow_read = timed(lambda: columns(plain))
    write, read = timed(lambda: write_manifest(folder, manifest)), timed(lambda: read_manifest(folder))
    order = np.zeros(samples, np.uint64)
    candidates = Candidates(manifest, order.astype(np.int64), manifest.ids, order, order.astype(np.uint8))
    compare = timed(lambda: survey(candidates, 256, Findings()), 1)
    size = (folder / MANIFEST_NAME).stat().st_size
    print(
        f"{samples:,} rows, {size / 1e6:.0f} MB of Parquet ({size / samples:.0f} bytes a row), {memory:.0f} MB as rows"
    )
    print(f"{'':34}{'s':>8}{'times pyarrow':>16}")
    print(f"{'rows made, for comparison':34}{made:8.2f}")
    print(f"{'Manifest.from_rows':34}{build:8.2f}{build / pyarrow_write:16.1f}")
    print(f"{'write_manifest':34}{write:8.2f}{write / pyarrow_write:16.1f}")
    print(f"{'pyarrow writes the same table':34}{pyarrow_write:8.2f}{1:16.1f}")
    print(f"{'read_manifest':34}{read:8.2f}{read / pyarrow_read:16.1f}")
    print(f"{'pyarrow reads it to NumPy':34}{pyarrow_read:8.2f}{1:16.1f}")
    print(f"{'doctor compares all samples':34}{compare:8.2f}")


def columns(path: Path) -> list[np.ndarray]:
    """All columns as NumPy arrays, keys as Python strings."""
    found = []
    for column in pq.read_table(path).columns:
        flat = column.combine_chunks()
        found.append((flat.flatten() if pa.types.is_list(flat.type) else flat).to_numpy(zero_copy_only=False))
    return found


def bench_shards(folder: Path, megabytes: int) -> None:
    nbytes = [
        256 * int(np.prod(grid)) + 8192 * length for grid, length in zip(GRIDS, TEXT_LENGTHS, strict=True)
    ]
    dataset = write_dataset(
        folder / "dataset",
        max(8, int(megabytes * 1e6 / np.mean(nbytes))),
        channels=128,
        grids=GRIDS,
        text_lengths=TEXT_LENGTHS,
        text_width=4096,
        shard_bytes=64 << 20,
    )
    total = int(dataset.manifest.nbytes.sum())
    limit = timed(lambda: read_and_hash(dataset))
    print(
        f"\n{len(dataset.manifest):,} samples, {total / 1e6:.0f} MB in {len(dataset.manifest.shards)} shards"
    )
    print(f"{'':34}{'MB/s':>8}{'% of reading and hashing':>26}")
    for name, method in (
        ("read and hash, 1 thread", lambda: read_and_hash(dataset)),
        ("index, 1 thread", lambda: index(dataset.root, threads=1)),
        ("index, 2 threads", lambda: index(dataset.root, threads=2)),
        ("doctor, 1 thread", lambda: diagnose(dataset.root, threads=1)),
        ("doctor, 2 threads", lambda: diagnose(dataset.root, threads=2)),
    ):
        wall = timed(method)
        print(f"{name:34}{total / wall / 1e6:8.0f}{100 * limit / wall:26.0f}")


def bench_small(folder: Path, samples: int) -> None:
    """An index of shards whose samples are so small that only their number counts."""
    dataset = write_dataset(
        folder / "small",
        samples,
        channels=4,
        grids=((1, 2, 2),),
        text_lengths=(2,),
        text_width=8,
        shard_bytes=16 << 20,
    )
    wall = timed(lambda: index(dataset.root, threads=os.cpu_count()))
    headers = timed(lambda: list_members(dataset))
    print(
        f"\n{samples:,} small samples: index {samples / wall:,.0f} samples/s on {os.cpu_count()} CPUs "
        f"(1M in {1e6 / samples * wall:.0f} s), {wall / headers:.2f} times what tarfile takes to list the members"
    )


def list_members(dataset: Dataset) -> None:
    for name in dataset.manifest.shards:
        with tarfile.open(Path(dataset.root) / name) as tar:
            tar.getmembers()


def read_and_hash(dataset: Dataset) -> None:
    buffer = memoryview(bytearray(8 << 20))
    for name in dataset.manifest.shards:
        digest = xxhash.xxh3_64()
        with open(Path(dataset.root) / name, "rb", buffering=0) as file:
            while count := file.readinto(buffer):
                digest.update(buffer[:count])


def peak() -> float:
    """Most memory of this process so far, MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=1_000_000, help="rows of the table")
    parser.add_argument("--megabytes", type=int, default=512, help="size of the shards scanned")
    parser.add_argument("--small", type=int, default=50_000, help="small samples indexed")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write (default: a temporary folder)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{os.cpu_count()} CPUs, load average of the last minute {os.getloadavg()[0]:.1f}")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        bench_table(Path(folder), arguments.samples)
        bench_shards(Path(folder), arguments.megabytes)
        bench_small(Path(folder), arguments.small)


if __name__ == "__main__":
    main()
