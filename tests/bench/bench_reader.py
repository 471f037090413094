"""Speed of reading samples, as ratios to plain ``readinto`` of the same files in the same run.

    python -m tests.bench.bench_reader --megabytes 1024

Everything is read from a warm page cache. Two limits are shown, because where the bytes go costs as much as
where they come from: ``readinto`` through one 8 MiB buffer that stays in the processor's cache and keeps
nothing, and ``readinto`` into buffers of a step's size, which any reader that hands out samples has to fill.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from shards.dataset.convert import convert
from shards.dataset.opened import Dataset, open_dataset
from shards.reader import Reader
from tests.support.datasets import write_dataset

# Grids of clips from a single image to a long video, as 768x448 and 1280x704 give at a VAE of 8 x 32.
GRIDS = ((1, 22, 40), (6, 14, 24), (12, 14, 24), (9, 22, 40), (16, 22, 40))
TEXT_LENGTHS = (12, 48, 80, 140, 256)
STEP = 16  # samples per read
THREADS = (1, 2, 4)


def readinto_shards(dataset: Dataset, threads: int, buffers: list[memoryview]) -> None:
    """The limit: every shard by ``readinto`` through one reused buffer per thread."""
    paths = iter([dataset.root / name for name in dataset.manifest.shards])

    def loop(buffer: memoryview) -> None:
        for path in paths:
            with open(path, "rb", buffering=0) as file:
                while file.readinto(buffer):
                    pass

    workers = [threading.Thread(target=loop, args=(buffer,)) for buffer in buffers[:threads]]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def our_reader(reader: Reader, samples: int) -> None:
    """Random order, one step of samples at a time; the one before is held while the next is read."""
    order = np.random.default_rng(0).permutation(samples)
    held = None
    for start in range(0, samples, STEP):
        held = reader.read(order[start : start + STEP])
    del held


def stock_webdataset(dataset: Dataset) -> None:
    """The usual pipeline: sequential tars, safetensors decoded from bytes."""
    import webdataset
    from safetensors.torch import load

    urls = [str(dataset.root / name) for name in dataset.manifest.shards]
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        load(sample["safetensors"])


def stock_streaming(dataset: Dataset) -> Callable[[], None]:
    """MosaicML's StreamingDataset over MDS shards, in order; opened once, as it keeps objects in shared memory."""
    from safetensors.torch import load

    from shards.formats.mds import streaming

    samples = streaming().StreamingDataset(local=f"{dataset.root}/shards", shuffle=False, batch_size=STEP)

    def read() -> None:
        count = sum(bool(load(sample["safetensors"])) for sample in samples)
        assert count == len(dataset.manifest), f"StreamingDataset gave {count} samples"

    return read


def pt_files(folder: Path) -> None:
    """One .pt file per sample, as the predecessor stores them."""
    for path in sorted(folder.glob("*.pt")):
        torch.load(path, weights_only=True)


def write_pt_files(dataset: Dataset, folder: Path) -> None:
    folder.mkdir()
    with Reader(dataset) as reader:
        for row in range(len(dataset.manifest)):
            sample = reader.read([row])[0]
            tensors = {"latents": sample.latents.clone(), "prompt_embeds": sample.prompt_embeds.clone()}
            torch.save(tensors, folder / f"{row:06d}.pt")


def settle(folder: Path) -> None:
    """Bring every file into the page cache the same way: how it was written decides the size of its pages there,
    and that the speed of copying out of it, by up to two times."""
    buffer = memoryview(bytearray(8 << 20))
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with open(path, "rb", buffering=0) as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            while file.readinto(buffer):
                pass


def measure(methods: dict[str, Callable[[], None]], repeats: int) -> dict[str, tuple[float, float]]:
    """Best wall-clock seconds and the CPU seconds of that run; the methods take turns."""
    best = {name: (float("inf"), 0.0) for name in methods}
    for turn in range(repeats + 1):
        for name, method in methods.items():
            wall, cpu = time.perf_counter(), time.process_time()
            method()
            figures = time.perf_counter() - wall, time.process_time() - cpu
            if turn:  # the first turn warms the page cache and the buffers
                best[name] = min(best[name], figures)
    return best


def report(results: dict[str, tuple[float, float]], nbytes: int, samples: int) -> None:
    cached, delivered = results["readinto 8 MiB, 1 thread"][0], results["readinto step size, 1 thread"][0]
    print(f"{'method':38}{'MB/s':>8}{'samples/s':>11}{'% of 8 MiB':>12}{'% of step size':>16}{'CPU s':>8}")
    for name, (wall, cpu) in results.items():
        ratios = f"{100 * cached / wall:12.0f}{100 * delivered / wall:16.0f}"
        print(f"{name:38}{nbytes / wall / 1e6:8.0f}{samples / wall:11.0f}{ratios}{cpu:8.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--megabytes", type=int, default=1024, help="size of the data set written for the run"
    )
    parser.add_argument("--repeats", type=int, default=4, help="the best of so many turns counts")
    parser.add_argument(
        "--folder", type=Path, default=None, help="where to write it (default: a temporary folder)"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        run(Path(folder), arguments.megabytes, arguments.repeats)


def run(folder: Path, megabytes: int, repeats: int) -> None:
    sizes = [
        256 * int(np.prod(grid)) + 8192 * length for grid, length in zip(GRIDS, TEXT_LENGTHS, strict=True)
    ]
    dataset = write_dataset(
        folder / "dataset",
        max(STEP, int(megabytes * 1e6 / np.mean(sizes))),
        channels=128,
        grids=GRIDS,
        text_lengths=TEXT_LENGTHS,
        text_width=4096,
        shard_bytes=128 << 20,
    )
    write_pt_files(dataset, folder / "pt")
    convert(dataset.root, folder / "mds", "mds")
    mds = open_dataset(folder / "mds")
    settle(folder)
    nbytes, samples = int(dataset.manifest.nbytes.sum()), len(dataset.manifest)
    shards = len(dataset.manifest.shards)
    print(f"{samples} samples, {nbytes / 1e6:.0f} MB in {shards} shards, {os.cpu_count()} CPUs")
    print(f"load average of the last minute: {os.getloadavg()[0]:.1f}")
    report(measure(all_methods(dataset, mds, folder / "pt"), repeats), nbytes, samples)


def all_methods(dataset: Dataset, mds: Dataset, pt_folder: Path) -> dict[str, Callable[[], None]]:
    methods: dict[str, Callable[[], None]] = {}
    step_bytes = int(dataset.manifest.nbytes.mean() * STEP)
    for name, size in (("8 MiB", 8 << 20), ("step size", step_bytes)):
        # Zeros written by hand, so that every page is there before anything is timed.
        buffers = [torch.zeros(size, dtype=torch.uint8).add_(1).numpy().data for _ in range(max(THREADS))]
        for threads in THREADS:
            label = f"readinto {name}, {threads} thread{'s' * (threads > 1)}"
            methods[label] = lambda t=threads, b=buffers: readinto_shards(dataset, t, b)
    for verify in (False, True):
        for threads in THREADS:
            label = f"ours, {threads} thread{'s' * (threads > 1)}{', verified' * verify}"
            reader = Reader(dataset, threads=threads, verify=verify)
            methods[label] = lambda r=reader: our_reader(r, len(dataset.manifest))
    methods["readinto of MDS, step size, 1 thread"] = lambda b=buffers: readinto_shards(mds, 1, b)
    for threads in (1, 2):
        reader = Reader(mds, threads=threads, verify=False)
        label = f"ours on MDS, {threads} thread{'s' * (threads > 1)}"
        methods[label] = lambda r=reader: our_reader(r, len(mds.manifest))
    methods["MDS StreamingDataset + load"] = stock_streaming(mds)
    methods["webdataset + safetensors.load"] = lambda: stock_webdataset(dataset)
    methods[".pt file per sample"] = lambda: pt_files(pt_folder)
    return methods


if __name__ == "__main__":
    main()
