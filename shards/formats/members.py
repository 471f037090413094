"""The members of a tar, grouped into samples, as WebDataset groups them: by the name up to its first dot."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from shards.errors import ShardError

JSON, TENSORS = "json", "safetensors"
_BLOCK = tarfile.BLOCKSIZE


class Place(NamedTuple):
    """Where a member's bytes are in the tar."""

    offset: int
    nbytes: int


@dataclass
class SampleMembers:
    """Where the two members of a sample are; other files of the same key are passed over."""

    key: str
    json: Place | None = None
    tensors: Place | None = None
    cut: str | None = None  # a member whose name would belong here but for a second dot


_FIELDS = {JSON: "json", TENSORS: "tensors"}


@dataclass
class Members:
    """The samples of a tar in the order of their first member, and what broke the walk, if anything did."""

    samples: list[SampleMembers] = field(default_factory=list)
    damage: ShardError | None = None


def walk(file: BinaryIO, name: str) -> Members:
    """Read the headers of a tar, no payload. ``name`` is its path in the dataset, for messages.

    The two members of a sample may lie anywhere in the tar, in any order. A second member of a name that is
    complete begins another sample of the same key. Keys of which the tar holds neither member are no samples.
    """
    found = Members()
    latest: dict[str, SampleMembers] = {}
    key = ""
    try:
        for info in _files(file, name):
            key, extension = split(info.name)
            if (kind := extension.rpartition(".")[2]) not in (JSON, TENSORS):
                continue
            place = Place(info.offset_data, info.size)
            member = latest.get(key)
            if member is None or (kind == extension and getattr(member, _FIELDS[kind])):
                member = latest[key] = SampleMembers(key)
                found.samples.append(member)
            if kind == extension:
                setattr(member, _FIELDS[kind], place)
            else:
                member.cut = info.name
    except ShardError as error:
        found.damage = ShardError(name, key, error.what, error.expected, error.found)
    return found


def split(name: str) -> tuple[str, str]:
    """Key and extension of a member: folders belong to the key, and its last part ends at its first dot."""
    folder, slash, base = name.removeprefix("./").rpartition("/")
    stem, _, extension = base.partition(".")
    return folder + slash + stem, extension


def read(file: BinaryIO, name: str, key: str, place: Place) -> bytes:
    """The bytes of a member. Raises ShardError when the file ends before they do."""
    file.seek(place.offset)
    data = file.read(place.nbytes)
    if len(data) != place.nbytes:
        raise ShardError(name, key, "bytes of a member", place.nbytes, len(data))
    return data


def _files(file: BinaryIO, name: str) -> Iterator[tarfile.TarInfo]:
    """Headers of the regular files of a tar. Raises ShardError, without a key, where it is not whole."""
    file.seek(0, 2)
    size = file.tell()
    file.seek(0)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                if info.isreg():
                    if info.offset_data + info.size > size:
                        raise ShardError(
                            name, "", "bytes of a member", info.size, max(0, size - info.offset_data)
                        )
                    yield info
            # tarfile takes a damaged header, or none at all, for the end of the archive.
            end = tar.offset
    except tarfile.TarError as error:
        raise ShardError(
            name, "", "tar structure (last sample read is named)", "a whole tar", error
        ) from error
    file.seek(end)
    tail = file.read(_BLOCK)
    if len(tail) < _BLOCK or any(tail):
        what = "end of the tar (last sample read is named)"
        raise ShardError(name, "", what, "a block of zeros", f"{len(tail)} bytes that are not")
