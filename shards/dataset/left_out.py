"""Samples of the tars that repair took out of the manifest; ``left_out.jsonl`` keeps them out of the next one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from shards.errors import InputError
from shards.jsonl import from_lines, to_lines
from shards.storage import Storage

LEFT_OUT_NAME = "left_out.jsonl"


class LeftOut(NamedTuple):
    """One sample, by the bytes it had: a whole copy of it put in their place is another one, and comes back."""

    shard: str
    key: str
    checksum: str  # 16 hex digits, xxh3_64 of the payload as it was found
    reason: str

    @property
    def place(self) -> tuple[str, str, str]:
        """What it is known by."""
        return self.shard, self.key, self.checksum


def read_left_out(storage: Storage) -> list[LeftOut]:
    """The list of a dataset, empty where there is none. Raises InputError when it cannot be read."""
    try:
        data = storage.read(LEFT_OUT_NAME)
    except FileNotFoundError:
        return []
    try:
        return [LeftOut(**record) for record in from_lines(data)]
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{storage.name}/{LEFT_OUT_NAME} is not a list of left-out samples ({error}): "
            "remove it, and its samples come back"
        ) from error


def write_left_out(storage: Storage, entries: Iterable[LeftOut]) -> None:
    """Replace the list; each sample once, in the order given. An empty one leaves no file."""
    unique = {entry.place: entry for entry in entries}
    if not unique:
        storage.remove(LEFT_OUT_NAME)
        return
    storage.write(LEFT_OUT_NAME, to_lines(entry._asdict() for entry in unique.values()))
