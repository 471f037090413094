"""A folder or URL that a new dataset is written into by one command: empty, or what an earlier attempt left there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.dataset.info import INFO_NAME
from shards.dataset.manifest import MANIFEST_NAME
from shards.errors import InputError
from shards.formats import SHARDS
from shards.storage import Folder, Root, Storage, open_storage

UNFINISHED_NAME = "unfinished.json"
_WORKSPACE = ".unfinished"


@contextmanager
def new_dataset(root: Root, command: str) -> Iterator[Storage]:
    """The storage at ``root``, to write a whole dataset into inside the block.

    A file ``unfinished.json`` is there meanwhile, and stays after an error: the next attempt, by whatever command,
    then removes the shards and begins anew. The block writes the manifest last, so one that is there is never
    touched. Raises InputError when ``root`` holds a dataset, or shards that no such attempt left.
    """
    storage = open_storage(root)
    _check(storage)
    storage.write(UNFINISHED_NAME, json.dumps({"command": command}).encode())
    for name in (INFO_NAME, *(entry.path for entry in storage.list(SHARDS))):
        storage.remove(name)
    yield storage
    storage.remove(UNFINISHED_NAME)


@contextmanager
def workspace(storage: Storage) -> Iterator[Path]:
    """An empty folder of this machine for files on their way to ``storage``, on the same disk where that is local.

    It is gone after the block, and what a killed process left of it before.
    """
    if not isinstance(storage, Folder):
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    path = storage.root / _WORKSPACE
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(parents=True)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def move(file: Path, storage: Storage, path: str) -> None:
    """Take a file of a workspace to its place in ``storage``, in one step."""
    if isinstance(storage, Folder):
        target = storage.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, target)
        return
    with open(file, "rb") as source, storage.writer(path) as sink:
        shutil.copyfileobj(source, sink, 8 << 20)
    file.unlink()


def _check(storage: Storage) -> None:
    unfinished = storage.stat(UNFINISHED_NAME)
    if storage.stat(MANIFEST_NAME) or (storage.stat(INFO_NAME) and not unfinished):
        raise InputError(f"{storage.name} already holds a dataset: give another folder")
    if storage.list(SHARDS) and not unfinished:
        raise InputError(
            f"{storage.name}/{SHARDS} holds files already: give another folder, or remove them first"
        )
