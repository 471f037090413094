"""Text in the files of others: JSON and the names of samples, of which nothing is believed."""

from __future__ import annotations

import json
from typing import Any


def parse_json(data: bytes) -> Any:
    """What JSON bytes in UTF-8 say. Raises ValueError for anything else, nested too deep among it."""
    try:
        return json.loads(data.decode("utf-8-sig"))
    except RecursionError as error:
        raise ValueError("the JSON is nested too deep") from error


def key_fault(key: str) -> str:
    """Why a key, or the path of a shard, must not be used as a path below a folder; empty for one that may.

    This is the one rule for all that is read; ``check_key`` asks more of what is written.
    """
    if not key or "\0" in key:
        return "is not a file's name"
    if key.startswith("/") or ".." in key.split("/"):
        return "leads out of its folder"
    if not _is_text(key):
        return "is not UTF-8 text"
    return ""


def printable(name: str) -> str:
    """A name of others as it can be printed and written: bytes in it that are no UTF-8 as their codes."""
    return name.encode("utf-8", "backslashreplace").decode("utf-8")


def _is_text(key: str) -> bool:
    # What cannot be decoded comes as lone surrogates, which no file and no hash can take.
    try:
        key.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
