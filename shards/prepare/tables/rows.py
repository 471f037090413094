"""Tables of clips as files: CSV, JSON (a list of objects) or JSONL, all columns kept."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from shards.atomic import replacing
from shards.errors import InputError

TABLE_SUFFIXES = frozenset({".csv", ".json", ".jsonl"})
_LONGEST_CELL = 1 << 24  # the csv module's own limit is 128 KiB
_SEPARATOR = ";"


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a .csv, .json (a list of objects) or .jsonl file, with all their columns.

    CSV cells are text, and None where a line is short. Raises `InputError` naming the file and the row for
    what cannot be read.
    """
    return [fields for _, fields in numbered_rows(path)]


def numbered_rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, fields) of each row, `where` as a person would find it ("row 3", "line 3"). Raises as `read_rows`."""
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


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as .csv, .json or .jsonl by suffix, atomically; folders are made. See `table_bytes`."""
    data = table_bytes(path, rows)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        file.write(data)


def split_cell(path: Path, value: Any) -> list[str] | None:
    """The texts in a cell of a table at `path`: one, a list of them or, in CSV, several joined by `;`.

    They are stripped. A cell without any gives none, one with other values than text None.
    """
    if isinstance(value, str):
        value = value.split(_SEPARATOR) if path.suffix.lower() == ".csv" else [value]
    values = [] if value is None else value
    if not isinstance(values, list) or not all(isinstance(part, str) for part in values):
        return None
    parts = [part.strip() for part in values]
    return parts if any(parts) else []


def table_bytes(path: Path, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Rows as a file of the name `path` holds them: by suffix, UTF-8, columns in the order first seen.

    In CSV a list of texts becomes one cell, joined by `;`, None and absent values an empty one. Equal rows
    give equal bytes. Raises `InputError` for another suffix, and for text that is not Unicode.
    """
    formats = {".csv": _as_csv, ".json": _as_json, ".jsonl": _as_jsonl}
    as_text = formats.get(path.suffix.lower())
    if as_text is None:
        raise InputError(f"{path}: unknown kind of dataset file. Name it .csv, .json or .jsonl.")
    try:
        return as_text(rows).encode("utf-8")
    except UnicodeEncodeError as error:
        broken = error.object[max(0, error.start - 40) : error.end]
        raise InputError(f"{path}: {broken!r} is not text that UTF-8 can hold. Rename the file.") from None


def _read_csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(_LONGEST_CELL)
    with open(path, encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file)
        try:
            twice = [name for name, count in Counter(reader.fieldnames or ()).items() if count > 1]
            if twice:
                raise InputError(f"{path}: the column {twice[0]!r} is there twice. Rename or remove one.")
            for number, fields in enumerate(reader, start=1):
                if None in fields:
                    raise InputError(
                        f"{path}: row {number}: more cells than columns ({fields[None]!r} left over). "
                        'Put text that holds commas into "quotes".'
                    )
                yield f"row {number}", fields
        except csv.Error as error:
            raise InputError(f"{path}: line {reader.line_num}: not valid CSV ({error}).") from error


def _read_json(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        entries = json.loads(path.read_text(encoding="utf-8-sig"))
    except (json.JSONDecodeError, RecursionError) as error:
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
            except (json.JSONDecodeError, RecursionError) as error:
                raise InputError(f"{path}: line {number}: not valid JSON ({error}).") from error
            yield f"line {number}", _object(path, f"line {number}", fields)


def _object(path: Path, where: str, fields: Any) -> dict[str, Any]:
    if not isinstance(fields, dict):
        raise InputError(
            f"{path}: {where}: holds a {type(fields).__name__}, expected an object with named columns."
        )
    for column, value in fields.items():
        # JSON can name halves of a character, which text cut in the middle of one has; UTF-8 has no bytes for them.
        if not _is_text(json.dumps([column, value], ensure_ascii=False)):
            raise InputError(
                f"{path}: {where}: column {column!r} holds half a character, which was cut: {value!r}. Correct it."
            )
    return fields


def _is_text(value: str) -> bool:
    try:
        return value.isascii() or bool(value.encode("utf-8"))
    except UnicodeEncodeError:
        return False


def _as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    columns = list(dict.fromkeys(name for row in rows for name in row))
    lines = [columns, *([_cell(row.get(name)) for name in columns] for row in rows)]
    return "".join(",".join(_quoted(cell, len(columns) == 1) for cell in line) + "\n" for line in lines)


def _quoted(cell: str, alone: bool) -> str:
    """A cell in quotes where it needs them. The csv module's writer forgets a lone carriage return."""
    if any(mark in cell for mark in ',"\r\n') or (alone and not cell):
        return '"' + cell.replace('"', '""') + '"'
    return cell


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return _SEPARATOR.join(value)
    return json.dumps(value, ensure_ascii=False)


def _as_json(rows: Sequence[Mapping[str, Any]]) -> str:
    return json.dumps([dict(row) for row in rows], ensure_ascii=False, indent=2) + "\n"


def _as_jsonl(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(dict(row), ensure_ascii=False) + "\n" for row in rows)
