"""JSON, one object a line: lists that a person looks at and a program reads."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any


def to_lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """UTF-8 text, one line for each record; empty without any."""
    return b"".join(_line(record) + b"\n" for record in records)


def from_lines(data: bytes) -> list[dict[str, Any]]:
    """The records of such a text. Raises ValueError where it is none."""
    # Only at line feeds: inside of a text there may be others of the characters that end a line in Unicode.
    return [json.loads(line) for line in data.split(b"\n") if line]


def _line(record: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(record, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:  # of a file name that is no text
        return json.dumps(record).encode("utf-8")
