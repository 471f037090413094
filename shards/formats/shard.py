"""The two formats of shards, told apart by the file's suffix: WebDataset's tar and MosaicML's MDS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import PurePosixPath

from shards.errors import InputError
from shards.formats import SHARDS
from shards.formats.mds import read_mds
from shards.formats.row import Stored
from shards.formats.tar import read_shard
from shards.storage import Storage

_READERS = {".tar": read_shard, ".mds": read_mds}
FORMATS = tuple(suffix.removeprefix(".") for suffix in _READERS)


def format_of(name: str) -> str:
    """Format of a shard by its name, one of ``FORMATS``; "" for a file that is none."""
    suffix = PurePosixPath(name).suffix
    return suffix.removeprefix(".") if suffix in _READERS else ""


def find_shards(storage: Storage) -> dict[str, int]:
    """Size in bytes of every shard by its path, sorted: those below ``shards/``, else all there are.

    Raises InputError for a compressed MDS shard: its samples have no place of their own in the file.
    """
    return _shards_below(storage, SHARDS) or _shards_below(storage, "")


def _shards_below(storage: Storage, folder: str) -> dict[str, int]:
    sizes = {entry.path: entry.size for entry in storage.list(folder)}
    for name in sizes:
        plain, mark, compression = name.rpartition(".mds.")
        if mark and f"{plain}.mds" not in sizes:
            raise InputError(
                f"{storage.name}/{name}: an MDS shard compressed with {compression} cannot be read by offset; "
                f"decompress it to {PurePosixPath(plain).name}.mds, or write it again with MDSWriter(compression=None)"
            )
    return {name: size for name, size in sizes.items() if format_of(name)}


def read_samples(
    storage: Storage, name: str, others: Counter[str] | None = None, halves: Collection[str] = ()
) -> Iterator[Stored]:
    """Every sample of a shard of either format with its bytes; as ``read_shard`` and ``read_mds``."""
    return _READERS[PurePosixPath(name).suffix](storage, name, others, halves)
