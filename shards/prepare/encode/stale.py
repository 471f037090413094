"""Which shards are to be made again: their clips changed, or they are not as they were written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

from shards.dataset.encoding import JOB
from shards.errors import InputError
from shards.formats import SHARDS
from shards.prepare.encode.options import EncodeOptions
from shards.prepare.tables.table import Row
from shards.storage import Storage

ATTEMPTS = f"{JOB}/attempts"
DEADLY = f"{JOB}/deadly"  # marks of files that end the process that reads them


def shard_name(number: int) -> str:
    """Path of shard `number` in the dataset."""
    return f"{SHARDS}/{number:06d}.tar"


def rows_of(unit: int, rows: Sequence[Row], options: EncodeOptions) -> Sequence[Row]:
    """The rows that go into one shard."""
    return rows[unit * options.rows_per_shard : (unit + 1) * options.rows_per_shard]


def units_of(rows: Sequence[Row], options: EncodeOptions) -> int:
    """How many shards the rows make."""
    return -(-len(rows) // options.rows_per_shard)


def file_sizes(rows: Iterable[Row]) -> list[list[int | None]]:
    """Bytes of the clip of each row and of its references, None for what is not there."""

    def size(path: Path) -> int | None:
        try:
            return path.stat().st_size
        except OSError:
            return None

    return [[size(path) for path in (row.media, *row.references)] for row in rows]


def staleness(
    storage: Storage, rows: Sequence[Row], options: EncodeOptions
) -> Callable[[int, Mapping[str, Any]], str]:
    """A function of a unit and its result: why the unit is to be done again, in words; empty where it is not.

    Its shard is gone or has another size, a clip changed its size or came back, or, where that is asked for, a row
    failed. A clip that was there and is gone keeps its shard; the function raises InputError where that is not whole
    either. The storage is listed once, at the first call.
    """

    @cache
    def there() -> tuple[set[str], dict[str, int]]:
        # Attempts first: one that is put in place meanwhile is seen twice, and not missed.
        attempts = {entry.path for entry in storage.list(ATTEMPTS)}
        return attempts, {entry.path: entry.size for entry in storage.list(SHARDS)}

    def is_whole(unit: int, result: Mapping[str, Any]) -> bool:
        attempts, sizes = there()
        attempt = result["attempt"]
        return attempt is None or attempt in attempts or sizes.get(shard_name(unit)) == result["bytes"]

    def why(unit: int, result: Mapping[str, Any]) -> str:
        chosen = rows_of(unit, rows, options)
        then, now = (list(chain(*sizes)) for sizes in (result["sizes"], file_sizes(chosen)))
        whole = is_whole(unit, result)
        paths = chain(*((row.media, *row.references) for row in chosen))
        for path, before, size in zip(paths, then, now, strict=True):
            if size is None and before is not None:
                if whole:
                    return ""
                raise InputError(
                    f"{storage.name}/{shard_name(unit)} is gone or cut, and cannot be made again, as {path} is gone "
                    "too: bring one of them back"
                )
        if not whole:
            return "gone or cut"
        if then != now:
            return "files changed"
        return "rows failed" if options.retry_failed and result["failures"] else ""

    return why
