"""What a folder of clips knows of each video that was split into it: a file under the video's name, written last."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict

from shards.storage import Folder

_FOLDER = ".split/videos"


class Record(TypedDict):
    """A video and its clips: `source` as the user wrote it, `path` as `real_path` gives it, `size` in bytes.

    `clips` are rows of the table, `left_out` counts scenes by reason, `damage` says where the video breaks off.
    """

    source: str
    path: str
    size: int
    clips: Sequence[dict[str, Any]]
    left_out: dict[str, int]
    damage: str | None


def read_record(storage: Folder, name: str) -> Record | None:
    """The record of the video `name`, None where it was not split."""
    try:
        record: Record = json.loads(storage.read(f"{_FOLDER}/{name}.json"))
    except FileNotFoundError:
        return None
    return record


def write_record(storage: Folder, name: str, record: Record) -> None:
    """Say that the video `name` is split."""
    storage.write(f"{_FOLDER}/{name}.json", json.dumps(record, ensure_ascii=False).encode())


def read_records(storage: Folder) -> dict[str, Record]:
    """All records by the names of their videos, in order."""
    names = [entry.path[len(_FOLDER) + 1 : -len(".json")] for entry in storage.list(_FOLDER)]
    found = ((name, read_record(storage, name)) for name in names)
    return {name: record for name, record in found if record is not None}


def real_path(path: Path) -> str:
    """Where a file is, links resolved, as text that JSON can hold."""
    return os.fsencode(path.resolve()).decode(errors="backslashreplace")


def size_of(path: Path) -> int:
    """Bytes of a file; -1 for one that is not there any more, which reading it will tell."""
    try:
        return path.stat().st_size
    except OSError:
        return -1
