"""What a stage could not use: a list in a file beside its result, and as a table for a person."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.console import Group
from rich.table import Table
from rich.text import Text

from shards.errors import InputError
from shards.jsonl import from_lines, to_lines
from shards.storage import Storage

FAILURES_NAME = "failures.jsonl"
_SHOWN = 20


class Failure(NamedTuple):
    """One input that was left out: its path as the user wrote it, and why."""

    source: str
    reason: str


def reason_for(error: Exception) -> str:
    """Why an input could not be used, in a line: what the error gives as its `reason`, else its kind and message."""
    if reason := getattr(error, "reason", None):
        return str(reason)
    message = next(iter(str(error).splitlines()), "")
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def write_failures(storage: Storage, failures: Iterable[Sequence[str]], path: str = FAILURES_NAME) -> None:
    """Replace the list at `path` by these (source, reason) pairs. Without any there is no file."""
    lines = to_lines(Failure(*pair)._asdict() for pair in failures)
    if lines:
        storage.write(path, lines)
    elif storage.stat(path):
        storage.remove(path)


def read_failures(storage: Storage, path: str = FAILURES_NAME) -> tuple[Failure, ...]:
    """The list at `path`, empty where there is none. Raises InputError when it cannot be read."""
    try:
        data = storage.read(path)
    except FileNotFoundError:
        return ()
    try:
        return tuple(Failure(**record) for record in from_lines(data))
    except (ValueError, TypeError) as error:
        raise InputError(
            f"{storage.name}/{path} is not a list of what was left out ({error}): remove it"
        ) from error


def failures_table(failures: Sequence[Sequence[str]], title: str, column: str = "left out") -> Group:
    """The first failures with their reasons; `title` says what they are and where all are listed."""
    table = Table(column, "reason")
    for failure in failures[:_SHOWN]:
        table.add_row(*map(Text, failure))
    if len(failures) > _SHOWN:
        table.add_row("...", f"and {len(failures) - _SHOWN} more")
    return Group(Text(title), table)
