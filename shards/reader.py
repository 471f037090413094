"""Read samples by the manifest's offsets: straight from the tars into one buffer, without a copy after it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash

from shards.buffers import BufferPool
from shards.dataset import Dataset
from shards.errors import DamagedSample, ShardError
from shards.header import read_header, reference_names, sample_geometry
from shards.sample import Sample, views

_ALIGN = 64  # bytes; a cache line, and enough for any dtype
_OPEN_FILES = 256  # well below the usual limit of 1024 a process


class Reader:
    """Reads rows of a dataset with ``threads`` threads; reading and hashing drop the GIL.

    ``verify`` compares every payload's xxh3_64 with the manifest. ``pin`` reads into page-locked memory where
    there is CUDA. Safe to call from several threads; a context manager that closes its files and threads.
    """

    def __init__(self, dataset: Dataset, threads: int = 4, verify: bool = True, pin: bool = False) -> None:
        if threads < 1:
            raise ValueError(f"threads must be at least 1, got {threads}")
        self._manifest = dataset.manifest
        self._threads = threads
        self._verify = verify
        self._pin = pin and torch.cuda.is_available()
        self._files = _Files(dataset.root, _OPEN_FILES)
        self._buffers = BufferPool()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="reader")

    def read(self, rows: Sequence[int] | np.ndarray) -> list[Sample]:
        """Samples of these manifest rows, in this order; a row may come more than once.

        All tensors of one call share one buffer, which lives as long as any of them. Raises IndexError for a
        row outside the manifest; ShardError naming shard and key when a file is missing; DamagedSample, one of
        these, for the first row that is cut short, has another checksum or not the tensors of the manifest.
        """
        samples = []
        for found in self.read_each(rows):
            if isinstance(found, DamagedSample):
                raise found
            samples.append(found)
        return samples

    def read_each(self, rows: Sequence[int] | np.ndarray) -> list[Sample | DamagedSample]:
        """As `read`, but a damaged sample comes as the error that `read` would raise, in its place.

        Bytes found damaged are read once more before they count. Raises what `read` raises, except for damage.
        """
        numbers = np.asarray(rows, np.int64).reshape(-1)
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(self._manifest)):
            raise IndexError(
                f"rows {numbers.min()} to {numbers.max()} of a manifest of {len(self._manifest)}"
            )
        sizes = self._manifest.nbytes[numbers]
        room = -(-sizes // _ALIGN) * _ALIGN
        starts = np.cumsum(room) - room
        buffer = self._allocate(int(room.sum()))
        places = list(zip(numbers.tolist(), starts.tolist(), sizes.tolist(), strict=True))
        samples: list[Any] = [None] * len(places)
        self._load_all(places, buffer, samples)
        return samples

    def close(self) -> None:
        """End the threads and close the files. Samples already read stay valid."""
        self._pool.shutdown()
        self._files.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _allocate(self, nbytes: int) -> torch.Tensor:
        # Pinned memory is recycled by torch, which alone knows when a copy to the device has finished.
        if self._pin:
            return torch.empty(nbytes, dtype=torch.uint8, pin_memory=True)
        return self._buffers.take(nbytes)

    def _load_all(self, places: list[tuple[int, int, int]], buffer: torch.Tensor, samples: list[Any]) -> None:
        """Fill ``samples`` from (row, start, size) places; the threads share one iterator."""
        view = buffer.numpy().data
        work = iter(range(len(places)))

        def loop() -> None:
            for position in work:
                row, start, size = places[position]
                part = view[start : start + size]
                try:
                    samples[position] = self._load(row, part, buffer, start)
                except BaseException:
                    for _ in work:  # nothing more is started after a failure
                        pass
                    raise

        workers = min(self._threads, len(places))
        if workers == 1:
            loop()
            return
        futures = [self._pool.submit(loop) for _ in range(workers)]
        wait(futures)
        for future in futures:
            future.result()

    def _load(self, row: int, view: memoryview, buffer: torch.Tensor, start: int) -> Sample | DamagedSample:
        """One row, read into ``view``, the part of ``buffer`` that begins at ``start``; a second time if damaged."""
        for _ in range(2):
            try:
                self._fetch(row, view)
                return self._sample(row, view, buffer, start)
            except DamagedSample as error:
                damaged = error
        return damaged

    def _fetch(self, row: int, view: memoryview) -> None:
        """Bytes of one row into ``view``, compared with the manifest's checksum."""
        shard = self._manifest.shards[self._manifest.shard[row]]
        key = self._manifest.keys[row]
        try:
            with self._files.open(shard) as descriptor:
                found = _fill(descriptor, view, int(self._manifest.offset[row]))
        except OSError as error:
            raise ShardError(shard, key, "reading the file", "success", error.strerror) from error
        if found != len(view):
            raise DamagedSample(shard, key, "bytes before the end of the file", len(view), found)
        if self._verify:
            digest, expected = xxhash.xxh3_64_intdigest(view), int(self._manifest.checksum[row])
            if digest != expected:
                raise DamagedSample(shard, key, "xxh3_64 checksum", f"{expected:016x}", f"{digest:016x}")

    def _sample(self, row: int, payload: memoryview, buffer: torch.Tensor, start: int) -> Sample:
        """Tensors over the bytes of one row, in ``buffer`` from ``start``; sizes as in the manifest."""
        manifest = self._manifest
        shard, key = manifest.shards[manifest.shard[row]], manifest.keys[row]
        try:
            entries = read_header(payload)
            geometry = sample_geometry(entries)
        except ValueError as error:
            raise DamagedSample(shard, key, "payload", "the tensors of a sample", error) from error
        expected = (
            tuple(manifest.grid[row].tolist()),
            *map(tuple, manifest.references_of(row)),
            int(manifest.text_tokens[row]),
        )
        found = (tuple(geometry.grid), *map(tuple, geometry.references), geometry.text_tokens)
        if found != expected:
            raise DamagedSample(shard, key, "F, H, W of latents and references, text tokens", expected, found)
        tensors = views(buffer, start, entries)
        return Sample(
            key=key,
            id=int(manifest.ids[row]),
            latents=tensors["latents"],
            prompt_embeds=tensors["prompt_embeds"],
            references=tuple(tensors[name] for name in reference_names(tensors)),
            fps=float(manifest.fps[row]),
        )


def _fill(descriptor: int, view: memoryview, offset: int) -> int:
    """Read ``len(view)`` bytes at ``offset``; returns how many there were (fewer at the end of the file)."""
    done = 0
    while done < len(view):
        count = os.preadv(descriptor, [view[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


@dataclass
class _OpenFile:
    descriptor: int
    users: int = 0


class _Files:
    """Open shards, at most ``limit`` kept; one in use by any thread is never closed."""

    def __init__(self, root: Path, limit: int) -> None:
        self._root = root
        self._limit = limit
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _OpenFile] = OrderedDict()

    @contextmanager
    def open(self, path: str) -> Iterator[int]:
        """Descriptor of a shard, valid inside the block. Raises OSError when it cannot be opened."""
        with self._lock:
            entry = self._entries.get(path)
            if entry is None:
                self._close_idle(self._limit - 1)
                entry = self._entries[path] = _OpenFile(os.open(self._root / path, os.O_RDONLY))
            self._entries.move_to_end(path)
            entry.users += 1
        try:
            yield entry.descriptor
        finally:
            with self._lock:
                entry.users -= 1

    def close(self) -> None:
        with self._lock:
            self._close_idle(0)

    def _close_idle(self, keep: int) -> None:
        """Close the files unused for longest until ``keep`` are left."""
        if len(self._entries) <= keep:
            return
        idle = [path for path, entry in self._entries.items() if not entry.users]
        for path in idle[: len(self._entries) - keep]:
            os.close(self._entries.pop(path).descriptor)
