"""Read samples by the manifest's offsets: straight from the shards into one buffer, without a copy after it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from typing import Any

import numpy as np
import torch
import xxhash

from shards.buffers import BufferPool
from shards.dataset.opened import Dataset
from shards.errors import DamagedSample, InputError, ShardError
from shards.formats.header import read_header, reference_names, sample_geometry
from shards.formats.sample import Sample, views
from shards.storage import Folder, is_web, open_storage
from shards.storage.cache import Cache
from shards.storage.files import OpenFiles

_ALIGN = 64  # bytes; a cache line, and enough for any dtype


class Reader:
    """Reads rows of a dataset with several threads; reading and hashing drop the GIL.

    ``threads`` read from a folder, ``requests`` are under way at once to an object store. ``verify`` compares
    every payload's xxh3_64 with the manifest. ``cache`` keeps samples on this node's disk. Safe to call from
    several threads; a context manager that ends its threads and closes its files and the cache. Raises InputError
    where a web server does not answer byte ranges.
    """

    def __init__(
        self,
        dataset: Dataset,
        threads: int = 4,
        verify: bool = True,
        requests: int = 32,
        cache: Cache | None = None,
    ) -> None:
        if threads < 1 or requests < 1:
            raise ValueError(f"threads and requests must be at least 1, got {threads} and {requests}")
        self._manifest = dataset.manifest
        self._verify = verify
        self._cache = cache
        storage = open_storage(dataset.root)
        self._name = storage.name
        if is_web(self._name) and len(self._manifest):
            # A server that does not answer ranges is found before a run has begun.
            with suppress(FileNotFoundError):
                storage.fill(self._manifest.shards[0], 0, memoryview(bytearray(1)))
        self._files = OpenFiles(storage.root) if isinstance(storage, Folder) else None
        self._source = self._files or storage
        self._threads = threads if self._files else requests
        self._buffers = BufferPool()
        self._pool = ThreadPoolExecutor(self._threads, thread_name_prefix="reader")

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
        buffer = self._buffers.take(int(room.sum()))
        places = list(zip(numbers.tolist(), starts.tolist(), sizes.tolist(), strict=True))
        samples: list[Any] = [None] * len(places)
        self._load_all(places, buffer, samples)
        return samples

    def close(self) -> None:
        """End the threads and close the files. Samples already read stay valid."""
        self._pool.shutdown()
        if self._files:
            self._files.close()
        if self._cache:
            self._cache.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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
        """One row into ``view``, the part of ``buffer`` from ``start``; when damaged, once more from the source."""
        for cache in (self._cache, None):
            try:
                self._fetch(row, view, cache)
                return self._sample(row, view, buffer, start)
            except DamagedSample as error:
                damaged = error
        return damaged

    def _fetch(self, row: int, view: memoryview, cache: Cache | None) -> None:
        """Bytes of one row into ``view``, compared with the manifest's checksum."""
        shard, key = self._manifest.shards[self._manifest.shard[row]], self._manifest.keys[row]
        offset, checksum = int(self._manifest.offset[row]), int(self._manifest.checksum[row])
        name = f"{self._name} {shard} {offset} {len(view)} {checksum:016x}"
        cached = cache is not None and cache.get(name, view)
        if not cached:
            self._read_source(shard, key, offset, view)
        if self._verify or self._cache:
            digest = xxhash.xxh3_64_intdigest(view)
            if digest != checksum:
                raise DamagedSample(
                    shard, key, "xxh3_64 checksum", f"{checksum:016x}", f"{digest:016x}", self._name
                )
        if self._cache and not cached:
            self._cache.put(name, view)

    def _read_source(self, shard: str, key: str, offset: int, view: memoryview) -> None:
        try:
            found = self._source.fill(shard, offset, view)
        except (OSError, InputError) as error:
            what = "reading the file" if self._files else "reading the object"
            cause = getattr(error, "strerror", None) or str(error)
            raise ShardError(shard, key, what, "success", cause, self._name) from error
        if found != len(view):
            raise DamagedSample(shard, key, "bytes before the end of the file", len(view), found, self._name)

    def _sample(self, row: int, payload: memoryview, buffer: torch.Tensor, start: int) -> Sample:
        """Tensors over the bytes of one row, in ``buffer`` from ``start``; sizes as in the manifest."""
        manifest = self._manifest
        shard, key = manifest.shards[manifest.shard[row]], manifest.keys[row]
        try:
            entries = read_header(payload)
            geometry = sample_geometry(entries)
            tensors = views(buffer, start, entries)
        except (ValueError, RuntimeError) as error:  # of the header, and of torch
            raise DamagedSample(
                shard, key, "payload", "the tensors of a sample", error, self._name
            ) from error
        expected = (
            tuple(manifest.grid[row].tolist()),
            *map(tuple, manifest.references_of(row)),
            int(manifest.text_tokens[row]),
        )
        found = (tuple(geometry.grid), *map(tuple, geometry.references), geometry.text_tokens)
        if found != expected:
            raise DamagedSample(
                shard, key, "F, H, W of latents and references, text tokens", expected, found, self._name
            )
        return Sample(
            key=key,
            id=int(manifest.ids[row]),
            latents=tensors["latents"],
            prompt_embeds=tensors["prompt_embeds"],
            references=tuple(tensors[name] for name in reference_names(tensors)),
            fps=float(manifest.fps[row]),
        )
