"""Samples of the tars that repair took out of the manifest; ``left_out.jsonl`` keeps them out of the next one."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import NamedTuple

from shards.errors import InputError
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
        lines = storage.read(LEFT_OUT_NAME).decode("utf-8").splitlines()
    except FileNotFoundError:
        return []
    except UnicodeDecodeError as error:
        raise InputError(f"{storage.name}/{LEFT_OUT_NAME} is not text ({error}): remove it") from error
    try:
        return [LeftOut(**json.loads(line)) for line in lines]
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
    lines = (json.dumps(entry._asdict(), ensure_ascii=False) + "\n" for entry in unique.values())
    storage.write(LEFT_OUT_NAME, "".join(lines).encode("utf-8"))
