"""The encoding that makes a dataset: its notes lie in the dataset's folder, and say whether it is done."""

from __future__ import annotations

from contextlib import suppress

from shards.errors import InputError
from shards.formats.text import parse_json
from shards.storage import Storage

JOB = ".encode"  # the folder of the notes


def is_encoded(storage: Storage) -> bool:
    """Whether `ltx-shards encode` made, or makes, what is here."""
    return storage.stat(f"{JOB}/job.json") is not None


def check_encoded(storage: Storage) -> None:
    """Raise InputError where an encoding was begun and is not done: its shards are a part of a dataset."""
    if not is_encoded(storage) or storage.stat(f"{JOB}/result.json"):
        return
    done = ""
    with suppress(InputError, ValueError, KeyError, TypeError):  # a web server lists nothing
        units = parse_json(storage.read(f"{JOB}/job.json"))["units"]
        done = f" ({len(storage.list(f'{JOB}/units'))} of {units} units)"
    raise InputError(f"{storage.name}: encoding is unfinished{done}: run the same `ltx-shards encode` again")
