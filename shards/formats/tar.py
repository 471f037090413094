"""Shards: plain WebDataset tars with two members a sample, ``{key}.json`` and ``{key}.safetensors``."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, BinaryIO

from shards.errors import InputError, MissingMember
from shards.formats import SHARDS
from shards.formats.members import JSON, TENSORS, SampleMembers, read, walk
from shards.formats.row import Row, Stored, new_row, stored_row
from shards.formats.text import printable
from shards.storage import Root, Storage, open_storage

if TYPE_CHECKING:
    import webdataset

DEFAULT_SHARD_BYTES = 256 << 20
_BLOCK = tarfile.BLOCKSIZE


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
        row, data = new_row(name, key, meta, payload)
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

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: Any) -> None:
        if error is None:
            self.finish_shard()
            return
        self._tar = None
        self._open.__exit__(kind, error, trace)


def write_shard(
    storage: Storage, name: str, samples: Iterable[tuple[str, Mapping[str, Any] | bytes, bytes]]
) -> list[Row]:
    """Write (key, JSON member, safetensors bytes) samples into the one tar ``name``, atomically.

    A JSON member that is bytes already is written as it is. Equal samples give equal bytes. Raises InputError as
    ``ShardWriter.add`` does; no file is left then.
    """
    rows = []
    with storage.writer(name) as file, _tar_writer(file) as tar:
        for key, meta, payload in samples:
            row, data = new_row(name, key, meta, payload)
            rows.append(_append(tar, row, data, payload))
    return rows


def scan_shard(storage: Storage, name: str, fps: float | None = None) -> list[Row]:
    """Rows of every sample in a tar, in order, read from the tar alone; every payload is hashed on the way.

    ``name`` is its path in the dataset; ``fps`` is for samples whose JSON member has none. Files that belong
    to no sample are passed over. Raises ShardError when the tar is cut short or a member is damaged or
    missing, InputError for a sample without ``fps`` or with a name that leads out of its folder.
    """
    return [stored_row(name, stored, fps) for stored in read_shard(storage, name)]


def read_shard(
    storage: Storage, name: str, others: Counter[str] | None = None, halves: Collection[str] = ()
) -> Iterator[Stored]:
    """Every sample of a tar with its bytes, in order. Errors as of ``scan_shard``, but for what bytes mean.

    Files that are passed over are added to ``others``, by their extensions. Samples of the keys ``halves`` are passed
    over where they lack a member.
    """
    with storage.local(name) as path, open(path, "rb") as file:
        found = walk(file, name)
        if others is not None:
            others.update(found.others)
        if found.damage:
            raise found.damage
        for members in found.samples:
            if (members.json and members.tensors) or printable(members.key) not in halves:
                yield read_stored(file, name, members)


def read_stored(file: BinaryIO, name: str, members: SampleMembers) -> Stored:
    """One sample of the open tar ``name``. Raises as ``read_shard`` does."""
    key, meta, tensors = members.key, members.json, members.tensors
    if meta is None or tensors is None:
        kind, found = JSON if meta is None else TENSORS, "none"
        if members.cut:
            found += f"; the name {members.cut} has a second dot, and a key ends at the first"
        raise MissingMember(name, key, f"member {key}.{kind}", "one", found)
    return Stored(key, tensors.offset, read(file, name, key, meta), read(file, name, key, tensors))


def _tar_writer(file: BinaryIO) -> webdataset.TarWriter:
    import webdataset  # brings torch, which reading a tar does not need

    # mtime 0 makes equal samples give equal bytes; PAX differs from the plain format only for long names.
    return webdataset.TarWriter(file, encoder=False, mtime=0, format="PAX_FORMAT")


def _append(tar: webdataset.TarWriter, row: Row, data: bytes, payload: bytes) -> Row:
    tar.write({"__key__": row.key, "json": data, "safetensors": payload})
    # Members go in by name, so the payload is the last thing written, padded to whole blocks.
    return row._replace(offset=tar.tarstream.offset - -(-len(payload) // _BLOCK) * _BLOCK)
