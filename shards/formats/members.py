"""The members of a tar, grouped into samples, as WebDataset groups them: by the name up to its first dot."""

from __future__ import annotations

import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from shards.errors import ShardError

JSON, TENSORS = "json", "safetensors"
HIDDEN = "hidden"  # files whose names begin with a dot, as those that macOS puts beside each file
_BLOCK = tarfile.BLOCKSIZE
_STRUCTURE = "tar structure (last sample read is named)"


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
    """The samples of a tar in the order of their first member, and what broke the walk, if anything did.

    ``others`` counts the files that are neither of the two members, by what follows their name's first dot, or as
    ``HIDDEN``.
    """

    samples: list[SampleMembers] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
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
            stem, extension = split(info.name)
            if not stem or stem.endswith("/"):
                found.others[HIDDEN] += 1
                continue
            key, kind = stem, extension.rpartition(".")[2]
            if kind != extension or kind not in _FIELDS:
                found.others[extension] += 1
            if kind not in _FIELDS:
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
    """Headers of the regular files of a tar, links and devices left aside.

    Raises ShardError, without a key, where the tar is not whole or a member is not there in one piece.
    """
    file.seek(0, 2)
    size = file.tell()
    file.seek(0)
    last = -1
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for info in tar:
                # A size below zero leads tarfile backwards, to members that it has given already, for ever.
                if info.size < 0 or info.offset <= last:
                    raise ShardError(name, "", _STRUCTURE, "a whole tar", f"a member of {info.size} bytes")
                last = info.offset
                if not info.isreg():
                    continue
                if info.issparse():
                    raise ShardError(name, "", "member", "all its bytes", f"{info.name!r} as a sparse file")
                if info.offset_data + info.size > size:
                    found = max(0, size - info.offset_data)
                    raise ShardError(name, "", "bytes of a member", info.size, found)
                yield info
            # tarfile takes a damaged header, or none at all, for the end of the archive.
            end = tar.offset
    except (ShardError, OSError):
        raise
    except Exception as error:  # of many kinds, where headers are damaged
        raise ShardError(name, "", _STRUCTURE, "a whole tar", error) from error
    file.seek(end)
    tail = file.read(_BLOCK)
    if len(tail) < _BLOCK or any(tail):
        what = "end of the tar (last sample read is named)"
        raise ShardError(name, "", what, "a block of zeros", f"{len(tail)} bytes that are not")
