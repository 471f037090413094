"""Speed of reading samples from a server 30 ms away, as ratios to the limit of that server in the same run.

    python -m tests.bench.bench_range --megabytes 512

The server is nginx on this machine, which answers each request after the delay. Its limit is what plain range
requests for the same bytes get over as many connections, each thread asking for the next one as soon as it has
one, with nothing done to the bytes.
"""

from __future__ import annotations

import argparse
import http.client
import os
import shutil
import tempfile
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from shards.dataset.opened import Dataset, open_dataset
from shards.reader import Reader
from shards.storage.cache import Cache
from shards.stream import stream
from tests.bench.bench_reader import GRIDS, TEXT_LENGTHS, measure
from tests.support.datasets import write_dataset
from tests.support.servers import nginx

CONNECTIONS = (8, 32)
STEP = 32  # samples per read
DELAY_S = 0.03


def plain_ranges(dataset: Dataset, order: np.ndarray, connections: int, buffers: list[memoryview]) -> None:
    """The limit: one range request after another on each connection, into a buffer that is used again."""
    manifest = dataset.manifest
    host, _, folder = str(dataset.root).removeprefix("http://").partition("/")
    rows = iter(order.tolist())

    def loop(buffer: memoryview) -> None:
        connection = http.client.HTTPConnection(host)
        for row in rows:
            start, size = int(manifest.offset[row]), int(manifest.nbytes[row])
            path = f"/{folder}/{manifest.shards[manifest.shard[row]]}"
            connection.request("GET", path, headers={"Range": f"bytes={start}-{start + size - 1}"})
            response = connection.getresponse()
            done = 0
            while done < size:
                done += response.readinto(buffer[done:size])
            response.read()
        connection.close()

    threads = [threading.Thread(target=loop, args=(buffer,)) for buffer in buffers[:connections]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def our_reader(reader: Reader, order: np.ndarray) -> None:
    """Steps of samples loaded ahead by two threads, as in training."""
    steps = [order[start : start + STEP] for start in range(0, len(order), STEP)]
    with stream(steps, reader.read, depth=3, threads=2) as batches:
        for _ in batches:
            pass


def emptied(folder: Path, dataset: Dataset, order: np.ndarray, limit: int) -> None:
    """Our reader with a cache that holds nothing yet."""
    with Reader(dataset, cache=Cache(Path(tempfile.mkdtemp(dir=folder)), limit)) as reader:
        our_reader(reader, order)


def report(results: dict[str, tuple[float, float]], nbytes: int, samples: int) -> None:
    """Print the table; a method's limit is that of the connections in its name."""
    print(f"{'method':36}{'MB/s':>8}{'samples/s':>11}{'% of limit':>12}{'CPU s':>8}")
    for name, (wall, cpu) in results.items():
        limit = results[f"plain ranges, {name.split(', ')[1]}"][0]
        print(
            f"{name:36}{nbytes / wall / 1e6:8.0f}{samples / wall:11.0f}{100 * limit / wall:12.0f}{cpu:8.2f}"
        )


def run(folder: Path, megabytes: int, repeats: int) -> None:
    """Write a dataset, serve it, measure."""
    sizes = [
        256 * int(np.prod(grid)) + 8192 * length for grid, length in zip(GRIDS, TEXT_LENGTHS, strict=True)
    ]
    write_dataset(
        folder / "www" / "dataset",
        max(STEP, int(megabytes * 1e6 / np.mean(sizes))),
        channels=128,
        grids=GRIDS,
        text_lengths=TEXT_LENGTHS,
        text_width=4096,
        shard_bytes=128 << 20,
    )
    with nginx(folder / "www", folder / "nginx", DELAY_S) as url:
        dataset = open_dataset(f"{url}/dataset")
        manifest = dataset.manifest
        nbytes, samples = int(manifest.nbytes.sum()), len(manifest)
        print(
            f"{samples} samples, {nbytes / 1e6:.0f} MB, {DELAY_S * 1e3:.0f} ms a request, {os.cpu_count()} CPUs"
        )
        report(measure(all_methods(folder, dataset), repeats), nbytes, samples)


def all_methods(folder: Path, dataset: Dataset) -> dict[str, Callable[[], None]]:
    """Named runs over the same samples in the same order."""
    order = np.random.default_rng(0).permutation(len(dataset.manifest))
    largest, total = int(dataset.manifest.nbytes.max()), int(dataset.manifest.nbytes.sum())
    buffers = [torch.ones(largest, dtype=torch.uint8).numpy().data for _ in range(max(CONNECTIONS))]
    methods: dict[str, Callable[[], None]] = {}
    for count in CONNECTIONS:
        methods[f"plain ranges, {count}"] = partial(plain_ranges, dataset, order, count, buffers)
        methods[f"ours, {count}"] = partial(our_reader, Reader(dataset, requests=count), order)
    methods["ours, 32, empty cache"] = partial(emptied, folder, dataset, order, 2 * total)
    warm = Reader(dataset, cache=Cache(folder / "warm", 2 * total))
    methods["ours, 32, full cache"] = partial(our_reader, warm, order)
    return methods


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=512, help="size of the dataset written for the run")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many turns counts")
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: temporary)")
    arguments = parser.parse_args()
    if not shutil.which("nginx"):
        raise SystemExit("bench_range needs nginx: apt-get install nginx-light")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run(Path(folder), arguments.megabytes, arguments.repeats)


if __name__ == "__main__":
    main()
