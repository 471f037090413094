"""Shards in MosaicML's MDS format: a table of offsets and a description of the columns, then the samples.

A file is, in little-endian uint32 unless said otherwise: the number of samples n; n + 1 offsets, of every sample's
beginning and of the end; the JSON description of the columns; the samples. A sample is the size of each column
that has no fixed one, then the columns' bytes. Ours are ``json`` and ``key``, UTF-8 text, and ``safetensors``.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import BinaryIO, NamedTuple

import numpy as np

from shards.errors import InputError, ShardError
from shards.formats.row import Row, Stored, stored_row
from shards.formats.text import parse_json
from shards.storage import Storage

COLUMNS = {"json": "str", "key": "str", "safetensors": "bytes"}
INDEX_NAME = "index.json"  # the library's own list of shards, beside them
_READABLE = {"json": ("str", "bytes", "json"), "key": ("str", "bytes"), "safetensors": ("bytes",)}
_WORD = 4
_MOST_BYTES = (1 << 32) - 1  # of a shard: its offsets have 32 bits
_INSTALL = (
    "pip install --no-deps 'mosaicml-streaming>=0.13,<0.14' && "
    "pip install brotli python-snappy zstd catalogue tqdm"
)


def streaming() -> ModuleType:
    """The library's module ``streaming.base``, with ``MDSWriter`` and ``StreamingDataset``.

    Raises InputError naming the pip command where the library, or something it needs, is not installed.
    """
    try:
        return _import()
    except ImportError as error:
        raise InputError(f"MDS is written by mosaicml-streaming ({error}): {_INSTALL}") from error


def _import() -> ModuleType:
    if "streaming.base" not in sys.modules:
        try:
            importlib.import_module("streaming")
        except (ImportError, RuntimeError):
            # Its first line imports torchvision, which may be absent, or built for another torch. What is needed
            # here is below streaming.base, so an empty package stands in for the one that does not import.
            spec = importlib.util.find_spec("streaming")
            if spec is None:
                raise
            sys.modules["streaming"] = importlib.util.module_from_spec(spec)
    return importlib.import_module("streaming.base")


def write_mds(folder: Path, shards: Iterable[Iterable[Stored]]) -> Iterator[Path]:
    """Write samples into ``folder``, which must be new; gives each file once it is whole, and may be moved away.

    They are ``shard.00000.mds`` onwards and, at the end, ``index.json``. Every item of ``shards`` becomes a file of
    its own (several where it is larger than the 4 GiB that the format can address). The library holds a shard in
    memory, three times over while it writes it. Raises InputError without the library.
    """
    library = streaming()
    # Absolute: the library takes what stands before a colon for the scheme of a URL.
    writer = library.MDSWriter(columns=COLUMNS, out=str(folder.resolve()), size_limit=_MOST_BYTES)
    written = 0
    try:
        for samples in shards:
            for key, _, meta, payload in samples:
                writer.write({"key": key, "json": meta.decode("utf-8"), "safetensors": payload})
            if writer.new_samples:
                writer.flush_shard()
                writer._reset_cache()  # what the library's own `write` does when a shard is full
            for shard in writer.shards[written:]:
                yield folder / shard["raw_data"]["basename"]
            written = len(writer.shards)
        writer.finish()
    except BaseException as error:
        writer.cancel_future_jobs()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(folder)  # a full disk does not say where it is
        raise
    yield folder / INDEX_NAME


def scan_mds(storage: Storage, name: str, fps: float | None = None) -> list[Row]:
    """Rows of every sample in an MDS shard, in order; every payload is hashed on the way.

    ``name`` is its path in the dataset; ``fps`` is for samples whose JSON has none. ``Row.offset`` is that of the
    safetensors bytes in the file, so the reader needs to know nothing of the format. Columns other than the three
    are passed over. Raises ShardError when the file is cut short or damaged, lacks a column or has one of another
    kind; InputError for a key that leads out of its folder or is no text, or a sample without ``fps``.
    """
    return [stored_row(name, stored, fps) for stored in read_mds(storage, name)]


def read_mds(
    storage: Storage, name: str, others: Counter[str] | None = None, halves: Collection[str] = ()
) -> Iterator[Stored]:
    """Every sample of an MDS shard with its bytes, in order. Errors as of ``scan_mds``, but for what bytes mean.

    Columns that are passed over are added to ``others``, once for every sample. There are no ``halves`` in this
    format, as there are of samples in a tar.
    """
    with storage.local(name) as path, open(path, "rb") as file:
        offsets, columns = _head(file, name)
        if others is not None:
            strange = [column.name for column in columns if column.name not in COLUMNS]
            others.update(dict.fromkeys(strange, len(offsets) - 1))
        for number, (begin, end) in enumerate(pairwise(offsets)):
            file.seek(begin)
            data = file.read(end - begin)
            places = _places(data, columns)
            if places is None:
                raise ShardError(
                    name, "", f"columns of sample {number}", f"{end - begin} bytes", "other sizes in its head"
                )
            first, last = places["safetensors"]
            # As tarfile gives names: what is no text is kept, for `key_fault` to find.
            key = data[slice(*places["key"])].decode("utf-8", "surrogateescape")
            yield Stored(key, begin + first, data[slice(*places["json"])], data[first:last])


class _Column(NamedTuple):
    name: str
    encoding: str
    size: int | None


def _head(file: BinaryIO, name: str) -> tuple[list[int], list[_Column]]:
    """Offsets [n + 1] of the samples, the last the end of the file, and the columns in the order they lie."""
    size = os.fstat(file.fileno()).st_size
    count = int.from_bytes(file.read(_WORD), "little")
    start = _WORD * (count + 2)
    if start > size:
        raise ShardError(name, "", "table of offsets", f"{start} bytes", f"a file of {size}")
    offsets = np.frombuffer(file.read(_WORD * (count + 1)), "<u4").astype(np.int64)
    if offsets[0] < start or (np.diff(offsets) < 0).any() or offsets[-1] != size:
        raise ShardError(name, "", "end of the last sample", f"{offsets[-1]}", f"a file of {size} bytes")
    try:
        described = parse_json(file.read(int(offsets[0]) - start))
        rows = (described[f"column_{part}"] for part in ("names", "encodings", "sizes"))
        columns = [_Column(*row) for row in zip(*rows, strict=True)]
        if any(
            not (column.size is None or (type(column.size) is int and column.size >= 0)) for column in columns
        ):
            raise ValueError("column_sizes are not sizes")
        found = {column.name: column.encoding for column in columns}
    except (ValueError, KeyError, TypeError) as error:
        raise ShardError(name, "", "description of the columns", "JSON of MDS version 2", error) from error
    for column, encodings in _READABLE.items():
        if found.get(column) not in encodings:
            raise ShardError(name, "", "columns", f"{column} as {' or '.join(encodings)}", found)
    return offsets.tolist(), columns


def _places(data: bytes, columns: list[_Column]) -> dict[str, tuple[int, int]] | None:
    """Where each column lies in a sample, None when the sizes do not add up to it."""
    free = [column.name for column in columns if not column.size]
    position = _WORD * len(free)
    if position > len(data):
        return None
    sizes = dict(zip(free, np.frombuffer(data[:position], "<u4").tolist(), strict=True))
    places = {}
    for column in columns:
        begin, position = position, position + (column.size or sizes[column.name])
        places[column.name] = begin, position
    return places if position == len(data) else None
