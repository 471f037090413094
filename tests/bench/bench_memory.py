"""Memory of a process that reads an epoch in random order, tenth by tenth: it must not grow with what was read.

    python -m tests.bench.bench_memory --megabytes 512 --gigabytes 8

Samples are read as in training, steps loaded ahead by two threads. The last column is the resident memory after the
last tenth over that after the second one, when the buffers are there: 1.00 is flat.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from shards.dataset.convert import convert
from shards.dataset.opened import Dataset, open_dataset
from shards.reader import Reader
from tests.bench.bench_range import our_reader
from tests.bench.bench_reader import GRIDS, TEXT_LENGTHS
from tests.support.datasets import write_dataset
from tests.support.servers import nginx

TENTHS = 10


def resident() -> float:
    """MB of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def epoch(dataset: Dataset, gigabytes: float) -> list[float]:
    """MB after each tenth of so many GB, the samples of the dataset as often as that takes."""
    rounds = max(1, round(gigabytes * 1e9 / int(dataset.manifest.nbytes.sum())))
    generator = np.random.default_rng(1)
    order = np.concatenate([generator.permutation(len(dataset.manifest)) for _ in range(rounds)])
    figures = []
    with Reader(dataset) as reader:
        for tenth in np.array_split(order, TENTHS):
            our_reader(reader, tenth)
            figures.append(resident())
    return figures


def of_own_process(root: str, gigabytes: float) -> list[float]:
    """The figures of a process that does nothing else."""
    command = [
        sys.executable,
        "-m",
        "tests.bench.bench_memory",
        "--read",
        root,
        "--gigabytes",
        str(gigabytes),
    ]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [float(figure) for figure in output.split()]


def run(folder: Path, megabytes: int, gigabytes: float) -> None:
    """Write a dataset in both formats, serve it, read it from each place."""
    sizes = [
        256 * int(np.prod(grid)) + 8192 * length for grid, length in zip(GRIDS, TEXT_LENGTHS, strict=True)
    ]
    root = folder / "www" / "dataset"
    count = int(megabytes * 1e6 / np.mean(sizes))
    options = {"channels": 128, "text_width": 4096, "shard_bytes": 128 << 20}
    write_dataset(root, count, grids=GRIDS, text_lengths=TEXT_LENGTHS, **options)
    convert(root, folder / "mds", "mds")
    places = {"tar, folder": str(root), "MDS, folder": str(folder / "mds")}
    table = Table(title=f"resident MB over {gigabytes:g} GB of a dataset of {megabytes} MB")
    table.add_column("read from")
    for tenth in range(1, TENTHS + 1):
        table.add_column(f"{tenth}/10", justify="right")
    table.add_column("last / second", justify="right")
    with ExitStack() as stack:
        if shutil.which("nginx"):
            url = stack.enter_context(nginx(folder / "www", folder / "nginx", 0.0))
            places["tar, http"] = f"{url}/dataset"
        for name, place in places.items():
            figures = of_own_process(place, gigabytes)
            table.add_row(name, *(f"{figure:.0f}" for figure in figures), f"{figures[-1] / figures[1]:.2f}")
    Console(width=140).print(table)


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=512, help="size of the dataset written for the run")
    parser.add_argument("--gigabytes", type=float, default=8.0, help="to read from each place")
    parser.add_argument("--folder", type=Path, default=None, help="where to write (default: temporary)")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.read:
        print(*epoch(open_dataset(arguments.read), arguments.gigabytes))
        return
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run(Path(folder), arguments.megabytes, arguments.gigabytes)


if __name__ == "__main__":
    main()
