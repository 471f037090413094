"""The two formats of shards, told apart by the file's suffix: WebDataset's tar and MosaicML's MDS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath

from shards.errors import InputError
from shards.formats import SHARDS
from shards.formats.mds import read_mds, scan_mds
from shards.formats.row import Row, Stored
from shards.formats.tar import read_shard, scan_shard
from shards.storage import Storage

_READERS = {".tar": read_shard, ".mds": read_mds}
_SCANNERS = {".tar": scan_shard, ".mds": scan_mds}
FORMATS = tuple(suffix.removeprefix(".") for suffix in _READERS)


def format_of(name: str) -> str:
    """Format of a shard by its name, one of ``FORMATS``; "" for a file that is none."""
    suffix = PurePosixPath(name).suffix
    return suffix.removeprefix(".") if suffix in _READERS else ""


def shard_names(storage: Storage) -> list[str]:
    """Paths of all shards below ``shards/``, sorted.

    Raises InputError for a compressed MDS shard: its samples have no place of their own in the file.
    """
    names = [entry.path for entry in storage.list(SHARDS)]
    for name in names:
        plain, mark, compression = name.rpartition(".mds.")
        if mark and f"{plain}.mds" not in names:
            raise InputError(
                f"{storage.name}/{name}: an MDS shard compressed with {compression} cannot be read by offset; "
                f"decompress it to {PurePosixPath(plain).name}.mds, or write it again with MDSWriter(compression=None)"
            )
    return [name for name in names if format_of(name)]


def scan(storage: Storage, name: str, fps: float | None = None) -> list[Row]:
    """Rows of every sample in a shard of either format; as ``scan_shard`` and ``scan_mds``."""
    return _SCANNERS[PurePosixPath(name).suffix](storage, name, fps)


def read_samples(storage: Storage, name: str) -> Iterator[Stored]:
    """Every sample of a shard of either format with its bytes; as ``read_shard`` and ``read_mds``."""
    return _READERS[PurePosixPath(name).suffix](storage, name)
