"""The dataset file a user writes: a CSV, JSON or JSONL table of clips and captions."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import InputError

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
    reference: Path | None


def read_table(
    path: Path, caption: str = "caption", media: str = "media_path", reference: str | None = REFERENCE_COLUMN
) -> tuple[Row, ...]:
    """Rows of a .csv, .json (a list of objects) or .jsonl file; paths in it are relative to its folder.

    `reference` names the optional column of reference clips: it may be absent under its usual name, must be
    there under another, and None leaves references out. Raises `InputError` naming file, row and column for
    a missing column or value, and for media files that do not exist (the first few of them).
    """
    rows: list[Row] = []
    absent: list[str] = []
    for where, fields in _read(path):
        clip = _text(path, where, fields, media)
        pair = _reference(path, where, fields, reference)
        for column, value in ((media, clip), (reference, pair)):
            if value is not None and not (path.parent / value).is_file():
                absent.append(f"{where}, {column}: {value}")
        text = _text(path, where, fields, caption)
        paired = None if pair is None else path.parent / pair
        rows.append(Row("", text, clip, path.parent / clip, paired))
    if absent:
        shown = "; ".join(absent[:_LISTED]) + ("; ..." if len(absent) > _LISTED else "")
        raise InputError(
            f"{path}: {len(absent)} media file(s) not found, looked for relative to {path.parent}: {shown}. "
            "Correct the paths or take those rows out."
        )
    if not rows:
        raise InputError(
            f"{path}: no rows in it. Write one row per clip with the columns {caption!r} and {media!r}."
        )
    keys = sample_keys([os.path.relpath(row.media, path.parent) for row in rows])
    return tuple(
        Row(key, row.caption, row.source, row.media, row.reference)
        for key, row in zip(keys, rows, strict=True)
    )


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


def _read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, fields) of each row, `where` as a person would find it ("row 3", "line 3")."""
    readers = {".csv": _read_csv, ".json": _read_json, ".jsonl": _read_jsonl}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: unknown kind of dataset file. Give a .csv, .json or .jsonl file.")
    try:
        yield from reader(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such dataset file.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error}). Save it as UTF-8.") from error


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        for number, fields in enumerate(csv.DictReader(file), start=1):
            yield f"row {number}", fields


def _read_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: not valid JSON ({error}).") from error
    if not isinstance(entries, list):
        raise InputError(
            f"{path}: holds a {type(entries).__name__}, expected a list of objects, one per clip."
        )
    for number, fields in enumerate(entries, start=1):
        yield f"row {number}", _object(path, f"row {number}", fields)


def _read_jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    with open(path, encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                fields = json.loads(line)
            except json.JSONDecodeError as error:
                raise InputError(f"{path}: line {number}: not valid JSON ({error}).") from error
            yield f"line {number}", _object(path, f"line {number}", fields)


def _object(path: Path, where: str, fields: Any) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise InputError(
            f"{path}: {where}: holds a {type(fields).__name__}, expected an object with named columns."
        )
    return fields


def _text(path: Path, where: str, fields: dict[str, Any], column: str) -> str:
    value = fields.get(column)
    if column not in fields:
        there = ", ".join(repr(name) for name in fields) or "none"
        raise InputError(f"{path}: {where}: no column {column!r} (there are: {there}).")
    if not isinstance(value, str):
        raise InputError(f"{path}: {where}: column {column!r} holds {value!r}, expected text.")
    return value.strip()


def _reference(path: Path, where: str, fields: dict[str, Any], column: str | None) -> str | None:
    if column is None or (column == REFERENCE_COLUMN and column not in fields):
        return None
    if column in fields and fields[column] is None:
        return None
    return _text(path, where, fields, column) or None
