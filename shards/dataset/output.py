"""A folder or URL that one command at a time writes a dataset into."""

from __future__ import annotations

import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from shards.atomic import place
from shards.dataset.info import INFO_NAME
from shards.dataset.manifest import MANIFEST_NAME, Manifest, read_manifest
from shards.errors import InputError
from shards.formats import SHARDS
from shards.storage import Folder, Root, Storage, open_storage
from shards.storage.claims import Claims
from shards.storage.entry import Entry

UNFINISHED_NAME = "unfinished.json"
_WORKSPACE = ".unfinished"
_CLAIM = "writing.json"
_LEFT_S = 3600.0
_LOOK_S, _PATIENCE_S = 0.2, 5.0  # between looks at who writes, and until it is said that we wait


@contextmanager
def new_dataset(root: Root, command: str) -> Iterator[Storage]:
    """The storage at ``root``, to write a whole dataset into inside the block.

    A file ``unfinished.json`` is there meanwhile, and stays after an error: the next attempt, by whatever command,
    then removes the shards and begins anew. The block writes the manifest last, so one that is there is never
    touched. Raises InputError when ``root`` holds a dataset, or shards that no such attempt left, or when another
    command writes there now.
    """
    storage = open_storage(root)
    with writing(storage):
        _check(storage)
        storage.write(UNFINISHED_NAME, json.dumps({"command": command}).encode())
        storage.sweep(SHARDS)
        for name in (INFO_NAME, *(entry.path for entry in storage.list(SHARDS))):
            storage.remove(name)
        yield storage
        storage.remove(UNFINISHED_NAME)


def whole(root: Root) -> Manifest | None:
    """The manifest of the dataset at ``root`` where its description, its manifest and all its shards are there."""
    storage = open_storage(root)
    if not (storage.stat(INFO_NAME) and storage.stat(MANIFEST_NAME)):
        return None
    manifest = read_manifest(root)
    return None if missing_shard(storage, manifest) else manifest


def missing_shard(storage: Storage, manifest: Manifest) -> str | None:
    """The first shard of a manifest that is not in ``storage``, None where all are."""
    there = {entry.path for entry in storage.list(SHARDS)}
    return next((name for name in manifest.shards if name not in there), None)


@contextmanager
def writing(storage: Storage, patient: bool = False) -> Iterator[None]:
    """Keep other commands from writing the dataset at ``storage`` inside the block.

    What killed writers left there is taken away first, an hour after its last byte: `encode` may be at work.
    ``patient``: wait for the end of whoever writes there now; else raises InputError naming that process. Raises it
    at the end too, when this process stood still for so long that another took its place.
    """
    with Claims(storage, "") as claims:
        _claim(storage, claims, patient)
        for folder in ("", SHARDS):
            storage.sweep(folder, _LEFT_S)
        yield
        if not claims.keeps(_CLAIM):
            raise InputError(
                f"{storage.name}: this process stood still, and another wrote there meanwhile: "
                f"run `ltx-shards doctor {storage.name}`"
            )


@contextmanager
def rewriting(storage: Storage, seen: Entry | None) -> Iterator[None]:
    """`writing`, for a manifest that follows from one read before: ``seen`` is its file as it was then.

    Raises InputError where another command wrote one since.
    """
    with writing(storage):
        if storage.stat(MANIFEST_NAME) != seen:
            raise InputError(
                f"{storage.name}/{MANIFEST_NAME} was written by another command meanwhile: run this one again"
            )
        yield


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
        place(file, storage.root / path)
        return
    with open(file, "rb") as source, storage.writer(path) as sink:
        shutil.copyfileobj(source, sink, 8 << 20)
    file.unlink()


def _claim(storage: Storage, claims: Claims, patient: bool) -> None:
    told = time.monotonic() + _PATIENCE_S
    while not claims.take(_CLAIM):
        found = claims.look(_CLAIM, storage.clock())
        if found is None:  # let go of in this moment
            continue
        if not found.stale:
            busy = f"{storage.name} is being written by {found.holder or 'another process'}"
            if not patient:
                raise InputError(
                    f"{busy}: wait until it is done, or stop it (one killed on another machine counts as dead after "
                    f"{claims.lease:.0f} s)"
                )
            if time.monotonic() > told:
                told = math.inf
                print(f"{busy}: waiting until it is done", file=sys.stderr, flush=True)
            time.sleep(_LOOK_S)
            continue
        if claims.take_over(_CLAIM, found):
            return


def _check(storage: Storage) -> None:
    unfinished, manifest = storage.stat(UNFINISHED_NAME), storage.stat(MANIFEST_NAME)
    if unfinished and manifest:
        storage.remove(UNFINISHED_NAME)
        raise InputError(
            f"{storage.name} holds a complete dataset: an earlier attempt was stopped after its last step, and "
            "nothing is left to do; for another dataset give another folder"
        )
    if manifest or (storage.stat(INFO_NAME) and not unfinished):
        raise InputError(f"{storage.name} already holds a dataset: give another folder")
    if storage.list(SHARDS) and not unfinished:
        raise InputError(
            f"{storage.name}/{SHARDS} holds files already: give another folder, or remove them first"
        )
