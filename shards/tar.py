"""Shards: plain WebDataset tars with two members a sample, ``{key}.json`` and ``{key}.safetensors``."""

from __future__ import annotations

import json
import math
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import xxhash

from shards.errors import InputError, ShardError
from shards.geometry import Bucket
from shards.header import read_header, sample_geometry
from shards.manifest import Manifest, Row
from shards.members import JSON, TENSORS, SampleMembers, read, walk
from shards.storage import Root, Storage, open_storage

if TYPE_CHECKING:
    import webdataset

FORMAT = 1
SHARDS = "shards"
DEFAULT_SHARD_BYTES = 256 << 20
_BLOCK = tarfile.BLOCKSIZE


def sample_json(
    *, caption: str, source: str, fps: float, width: int, height: int, frames: int, bucket: Bucket
) -> dict[str, Any]:
    """The JSON member of a sample: its caption, the file it came from, that file's size and rate, its bucket.

    ``width``, ``height`` and ``frames`` are the clip's own, before it was brought to ``bucket``.
    """
    return {
        "format": FORMAT,
        "caption": caption,
        "source": source,
        "fps": float(fps),
        "width": int(width),
        "height": int(height),
        "frames": int(frames),
        "bucket": str(bucket),
    }


def check_key(key: str) -> None:
    """Raise InputError unless ``key`` names one sample for every reader of WebDataset tars.

    They split a member's name at its first dot, so a dot in a key would merge samples silently.
    """
    wrong = next((mark for mark in (".", "\\", "\0", "\n") if mark in key), None)
    if wrong is not None:
        raise InputError(
            f"key {key!r} contains {wrong!r}, where WebDataset would cut it; use another character"
        )
    if not key or key.startswith("/") or key.endswith("/") or "//" in key:
        raise InputError(f"key {key!r} is not usable as a file name inside a tar")


class Stored(NamedTuple):
    """A sample as a shard holds it: ``offset`` is that of its safetensors payload, ``meta`` its JSON bytes."""

    key: str
    offset: int
    meta: bytes
    payload: bytes


class ShardWriter:
    """Writes samples into ``root/shards/000000.tar`` onwards, each closed once it holds ``max_bytes``.

    A shard takes its final name only when it is complete. As a context manager: an error inside the block
    discards the shard being written and keeps the finished ones. Not thread-safe.
    """

    def __init__(self, root: Root, max_bytes: int = DEFAULT_SHARD_BYTES) -> None:
        self.storage = open_storage(root)
        self.max_bytes = max_bytes
        self.rows: list[Row] = []  # samples of finished shards
        self._pending: list[Row] = []
        self._keys: set[str] = set()
        self._count = 0
        self._open = ExitStack()
        self._tar: webdataset.TarWriter | None = None

    def add(self, key: str, meta: Mapping[str, Any], payload: bytes) -> None:
        """Append one sample: its JSON member (with ``fps``) and its safetensors bytes.

        Raises InputError for a key that is unusable or was already added, a rate that is not positive, or a
        payload without the tensors of a sample; nothing is written then.
        """
        if key in self._keys:
            raise InputError(f"key {key!r} was added twice; keys must be unique in a dataset")
        name = f"{SHARDS}/{self._count:06d}.tar"
        row, data = _prepare(name, key, meta, payload)
        if self._tar is None:
            if self.storage.stat(name):
                raise InputError(
                    f"{self.storage.name}/{name} exists already: write into an empty folder, "
                    "or remove the old shards"
                )
            file = self._open.enter_context(self.storage.writer(name))
            self._tar = self._open.enter_context(_tar_writer(file))
        self._pending.append(_append(self._tar, row, data, payload))
        self._keys.add(key)
        if self._tar.tarstream.offset >= self.max_bytes:
            self.finish_shard()

    def finish_shard(self) -> None:
        """Close the shard being written, if any; the next sample opens a new one."""
        if self._tar is None:
            return
        self._tar = None
        self._open.close()
        self.rows += self._pending
        self._pending = []
        self._count += 1

    def manifest(self) -> Manifest:
        """Close the last shard and return the table of all samples added."""
        self.finish_shard()
        return Manifest.from_rows(self.rows)

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.finish_shard()
            return
        self._tar = None
        self._open.__exit__(kind, error, trace)


def write_shard(
    storage: Storage, name: str, samples: Iterable[tuple[str, Mapping[str, Any], bytes]]
) -> list[Row]:
    """Write (key, JSON member, safetensors bytes) samples into the one tar ``name``, atomically.

    Equal samples give equal bytes. Raises InputError as ``ShardWriter.add`` does; no file is left then.
    """
    rows = []
    with storage.writer(name) as file, _tar_writer(file) as tar:
        for key, meta, payload in samples:
            row, data = _prepare(name, key, meta, payload)
            rows.append(_append(tar, row, data, payload))
    return rows


def scan_shard(storage: Storage, name: str, fps: float | None = None) -> list[Row]:
    """Rows of every sample in a tar, in order, read from the tar alone; every payload is hashed on the way.

    ``name`` is its path in the dataset; ``fps`` is for samples whose JSON member has none. Files that belong
    to no sample are passed over. Raises ShardError when the tar is cut short or a member is damaged or
    missing, InputError for a sample without ``fps`` or with a name that leads out of its folder.
    """
    return [stored_row(name, stored, fps) for stored in read_shard(storage, name)]


def read_shard(storage: Storage, name: str) -> Iterator[Stored]:
    """Every sample of a tar with its bytes, in order. Errors as of ``scan_shard``, but for what bytes mean."""
    with storage.local(name) as path, open(path, "rb") as file:
        found = walk(file, name)
        if found.damage:
            raise found.damage
        for members in found.samples:
            yield read_stored(file, name, members)


def read_stored(file: BinaryIO, name: str, members: SampleMembers) -> Stored:
    """One sample of the open tar ``name``. Raises as ``read_shard`` does."""
    key, meta, tensors = members.key, members.json, members.tensors
    if meta is None or tensors is None:
        kind, found = JSON if meta is None else TENSORS, "none"
        if members.cut:
            found += f"; the name {members.cut} has a second dot, and a key ends at the first"
        raise ShardError(name, key, f"member {key}.{kind}", "one", found)
    return Stored(key, tensors.offset, read(file, name, key, meta), read(file, name, key, tensors))


def stored_row(shard: str, stored: Stored, fps: float | None = None) -> Row:
    """The row of a sample of ``shard``; ``fps`` is for a JSON member without one. Raises as ``scan_shard`` does."""
    key = stored.key
    if key.startswith("/") or ".." in key.split("/"):
        raise InputError(
            f"{shard}: member {key!r} leads out of its folder: write the tar again with plain names"
        )
    try:
        return _row(shard, key, stored.meta, stored.payload, fps)._replace(offset=stored.offset)
    except NoRate:
        raise InputError(
            f"{shard}: the json of sample {key!r} has no fps: give the clips' rate with --fps"
        ) from None
    except ValueError as error:
        raise ShardError(shard, key, "member", "a readable sample", error) from error


def _tar_writer(file: BinaryIO) -> webdataset.TarWriter:
    import webdataset  # brings torch, which reading a tar does not need

    # mtime 0 makes equal samples give equal bytes; PAX differs from the plain format only for long names.
    return webdataset.TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT")


def _prepare(shard: str, key: str, meta: Mapping[str, Any], payload: bytes) -> tuple[Row, bytes]:
    check_key(key)
    data = json.dumps(dict(meta), sort_keys=True, ensure_ascii=False).encode("utf-8")
    try:
        return _row(shard, key, data, payload), data
    except ValueError as error:
        raise InputError(f"sample {key!r} cannot be written: {error}") from error


def _append(tar: webdataset.TarWriter, row: Row, data: bytes, payload: bytes) -> Row:
    tar.write({"__key__": row.key, "json": data, "safetensors": payload})
    # Members go in by name, so the payload is the last thing written, padded to whole blocks.
    return row._replace(offset=tar.tarstream.offset - -(-len(payload) // _BLOCK) * _BLOCK)


class NoRate(ValueError):
    """The JSON member does not say how many frames a second the clip has."""


def read_meta(meta: bytes) -> dict[str, Any]:
    """The JSON member of a sample. Raises ValueError when it is not a table, or one of a newer format."""
    values = json.loads(meta)
    if not isinstance(values, dict):
        raise ValueError(f"the json member is not a table but {type(values).__name__}")
    if int(values.get("format", FORMAT)) > FORMAT:
        raise ValueError(f"the json member has format {values['format']}, this code reads up to {FORMAT}")
    return values


def rate_of(values: Mapping[str, Any], fps: float | None = None) -> float:
    """Frames per second of a JSON member, ``fps`` where it has none. Raises ValueError unless positive."""
    rate = fps if values.get("fps") is None else values["fps"]
    if rate is None:
        raise NoRate("the json member needs a positive fps, found None")
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not math.isfinite(rate) or rate <= 0:
        raise ValueError(f"the json member needs a positive fps, found {rate!r}")
    return float(rate)


def _row(shard: str, key: str, meta: bytes, payload: bytes, fps: float | None = None) -> Row:
    """The row of one sample, with offset 0. Raises ValueError saying what the two members lack."""
    geometry = sample_geometry(read_header(payload))
    rate = rate_of(read_meta(meta), fps)
    return Row(
        key=key,
        shard=shard,
        offset=0,
        nbytes=len(payload),
        checksum=xxhash.xxh3_64_intdigest(payload),
        fps=rate,
        **geometry._asdict(),
    )
