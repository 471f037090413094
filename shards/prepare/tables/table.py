"""The dataset file a user writes: a CSV, JSON or JSONL table of clips and captions."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.prepare.tables.rows import numbered_rows, split_cell

REFERENCE_COLUMN = "reference_path"
_LISTED = 5
_LONGEST_KEY = 150


@dataclass(frozen=True)
class Row:
    """One line of the table. `key` names the sample for good, seeds depend on it; `source` is the media path
    as written."""

    key: str
    caption: str
    source: str
    media: Path
    references: tuple[Path, ...] = ()


def read_table(
    path: Path, caption: str = "caption", media: str = "media_path", reference: str | None = REFERENCE_COLUMN
) -> tuple[Row, ...]:
    """Rows of a .csv, .json (a list of objects) or .jsonl file; paths in it are relative to its folder.

    `reference` names the column of reference clips, or several with commas between them: a sample's
    references come in that order. A cell may hold several paths, as a list or, in CSV, joined by `;`. The
    usual name may be absent from the table, others must be there, and None leaves references out.

    Paths may be absolute or lead out of the folder. Nothing is looked up: see `check_media`.

    Raises `InputError` naming file, row and column for a missing
    column or value, and for a row that fills some of several reference columns.
    """
    columns = [name for name in map(str.strip, (reference or "").split(",")) if name]
    rows = []
    for where, fields in numbered_rows(path):
        clip = _text(path, where, fields, media)
        if not clip:
            raise InputError(
                f"{path}: {where}: column {media!r} is empty. Give the path of a clip or take the row out."
            )
        text = _text(path, where, fields, caption)
        paired = tuple(path.parent / value for value in _references(path, where, fields, columns))
        rows.append(Row("", text, clip, path.parent / clip, paired))
    if not rows:
        raise InputError(
            f"{path}: no rows in it. Write one row per clip with the columns {caption!r} and {media!r}."
        )
    keys = sample_keys([os.path.relpath(row.media, path.parent) for row in rows])
    return tuple(replace(row, key=key) for key, row in zip(keys, rows, strict=True))


def check_media(table: Path, rows: Sequence[Row]) -> None:
    """Raise `InputError` naming the first few files of `rows` that do not exist."""
    files = ((row.source, path) for row in rows for path in (row.media, *row.references))
    absent = [(source, path) for source, path in files if not path.is_file()]
    if absent:
        shown = "; ".join(_shown(table, source, path) for source, path in absent[:_LISTED])
        more = "; ..." if len(absent) > _LISTED else ""
        raise InputError(
            f"{table}: {len(absent)} media file(s) not found, looked for relative to {table.parent}: "
            f"{shown}{more}. Correct the paths or take those rows out."
        )


def digest(table: Path, rows: Sequence[Row]) -> str:
    """16 hex digits of all that the rows say, wherever the table and its files lie."""
    found = hashlib.sha256()
    for row in rows:
        references = [os.path.relpath(reference, table.parent) for reference in row.references]
        found.update(json.dumps([row.key, row.caption, row.source, references]).encode() + b"\n")
    return found.hexdigest()[:16]


def sample_keys(paths: list[str]) -> list[str]:
    """A unique key per path, of letters, digits, `-` and `_` only: `clips/a.mp4` becomes `clips__a_mp4`.

    A key depends on its own path, not on the order of rows. Paths that would share a key, are very long or
    hold other characters get a short hash of the path appended, and so do the second and later rows of one
    path.
    """
    plain = {path: _plain_key(path) for path in paths}
    shared = Counter(plain.values())
    seen: Counter[str] = Counter()
    keys = []
    for path in paths:
        key, lossless = plain[path], re.fullmatch(r"[A-Za-z0-9_./-]*", path)
        seen[path] += 1
        if seen[path] > 1 or shared[key] > 1 or not lossless or len(key) > _LONGEST_KEY:
            digest = hashlib.sha256(f"{path}\n{seen[path]}".encode()).hexdigest()
            key = f"{key[:_LONGEST_KEY]}-{digest[:8]}"
        keys.append(key)
    return keys


def _plain_key(path: str) -> str:
    return re.sub(r"[^A-Za-z0-9_-]", "_", path.replace("/", "__"))


def _shown(table: Path, source: str, path: Path) -> str:
    return source if path == table.parent / source else f"{os.path.relpath(path, table.parent)} (of {source})"


def _text(path: Path, where: str, fields: dict[str, Any], column: str) -> str:
    value = _value(path, where, fields, column)
    if not isinstance(value, str):
        raise InputError(f"{path}: {where}: column {column!r} holds {value!r}, expected text.")
    return value.strip()


def _value(path: Path, where: str, fields: dict[str, Any], column: str) -> Any:
    if column not in fields:
        there = ", ".join(repr(name) for name in fields) or "none"
        raise InputError(f"{path}: {where}: no column {column!r} (there are: {there}).")
    return fields[column]


def _references(path: Path, where: str, fields: dict[str, Any], columns: Sequence[str]) -> Iterator[str]:
    """Paths of all columns in order. Where one column were empty, the next would take its place in training."""
    filled = {column: _cell(path, where, fields, column) for column in columns}
    empty = [column for column, values in filled.items() if not values]
    if empty and len(empty) < len(filled):
        full = next(column for column, values in filled.items() if values)
        raise InputError(
            f"{path}: {where}: column {empty[0]!r} is empty and {full!r} is not: a row has references in "
            "all reference columns or in none."
        )
    for values in filled.values():
        yield from values


def _cell(path: Path, where: str, fields: dict[str, Any], column: str) -> list[str]:
    if column == REFERENCE_COLUMN and column not in fields:
        return []
    value = _value(path, where, fields, column)
    values = split_cell(path, value)
    if values is None:
        raise InputError(
            f"{path}: {where}: column {column!r} holds {value!r}, expected text or a list of it."
        )
    if not all(values):
        raise InputError(f"{path}: {where}: column {column!r} holds an empty path among others: {value!r}.")
    return values
