"""A request to encode, looked at before torch and the networks are loaded, which takes long."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from shards.dataset.encoding import JOB
from shards.dataset.info import INFO_NAME
from shards.dataset.manifest import MANIFEST_NAME
from shards.errors import InputError
from shards.formats import SHARDS
from shards.geometry import Bucket
from shards.prepare.encode.options import EncodeOptions, check
from shards.prepare.encode.options import identity as options_identity
from shards.prepare.encode.stale import staleness, units_of
from shards.prepare.tables.table import Row, check_media, digest, read_table
from shards.prepare.work.job import check_same, recorded
from shards.prepare.work.workers import ALONE, Worker
from shards.storage import Root, Storage, check_writable, is_url, open_storage

_ANEW_S = 30.0  # that workers wait for the first one where all rows failed the last time
_LOOK_S = 0.2
_DESCRIBED, _RESULT = f"{JOB}/job.json", f"{JOB}/result.json"
_VOID = b"{}"  # in place of what described a job that is being taken away
_OTHER_TABLE = (
    "encode the table as it was. New rows: put them into a table of their own, encode it into another folder and "
    "join both with `ltx-shards merge`. Other captions, or fewer rows: encode into another folder"
)
_VERSION = 2  # of the units' records
CURES = {
    "version": "it is of another version of this program: encode into another folder",
    "rows": _OTHER_TABLE,
    "table": _OTHER_TABLE,
}


def check_request(
    dataset_file: Path,
    out: Root,
    buckets: Sequence[Bucket],
    options: EncodeOptions,
    worker: Worker = ALONE,
) -> tuple[Row, ...]:
    """The rows of the table, once all is found in order that needs no model.

    Worker 0 looks for every file of a job that has not begun, and compares the request with one that has. Raises
    InputError.
    """
    check_writable(out)
    check(options)
    if not buckets:
        raise InputError("no resolution bucket given: write for example --buckets 768x448x89")
    rows = read_table(dataset_file, options.caption_column, options.media_column, options.reference_column)
    if not is_url(out) and Path(out).resolve() == dataset_file.parent.resolve():
        raise InputError(
            f"--out {out} is the folder of {dataset_file.name}: give one that is the dataset's own, as {out}/encoded"
        )
    storage = open_storage(out)
    begun = _begun(storage, worker)
    if worker.index:  # the first one may be about to begin anew, for another request
        return rows
    if not begun:
        check_media(dataset_file, rows)
    else:
        described = identity(dataset_file, rows, buckets, options)
        check_same(storage, JOB, units_of(rows, options), described, CURES, partly=True)
    return rows


def identity(
    dataset_file: Path, rows: Sequence[Row], buckets: Sequence[Bucket], options: EncodeOptions
) -> Mapping[str, Any]:
    """All that the bytes of the dataset depend on, beside the networks."""
    return {
        "work": "encode",
        "version": _VERSION,
        "rows": len(rows),
        "table": digest(dataset_file, rows),
        "buckets": ",".join(map(str, buckets)),
        **options_identity(options),
    }


def is_over(out: Root, rows: Sequence[Row], options: EncodeOptions) -> bool:
    """Whether nothing is left to do for a worker that comes late."""
    storage, units = open_storage(out), units_of(rows, options)
    if not storage.stat(_RESULT):
        return False
    why = staleness(storage, rows, options)
    found = recorded(storage, JOB, units)
    return len(found) == units and not any(why(unit, result) for unit, result in found.items())


def _begun(storage: Storage, worker: Worker) -> bool:
    """Whether a job was begun here. Raises InputError where there is a dataset that no job made."""
    if storage.stat(_DESCRIBED):
        if not _is_void(storage):
            return True
        # All rows failed the last time. What was wrong, files or options, will be different now: the first worker
        # begins anew, the others wait for that.
        if worker.index:
            until = time.monotonic() + _ANEW_S
            while _is_void(storage) and time.monotonic() < until:
                time.sleep(_LOOK_S)
            return True
        for entry in storage.list(JOB):
            if entry.path not in (_DESCRIBED, _RESULT):
                storage.remove(entry.path)
        # Void at each of these steps too, for whoever comes after a kill in between.
        storage.write(_DESCRIBED, _VOID)
        storage.remove(_RESULT)
        storage.remove(_DESCRIBED)
    elif _holds_data(storage):
        raise InputError(
            f"{storage.name} already holds a dataset, or a part of one: give another folder, or remove it first"
        )
    return False


def _is_void(storage: Storage) -> bool:
    """Whether the job that is here has nothing to lose: no row could be encoded."""
    with suppress(FileNotFoundError):
        if storage.read(_DESCRIBED) == _VOID:
            return True
        return storage.stat(_RESULT) is not None and not _holds_data(storage)
    return False


def _holds_data(storage: Storage) -> bool:
    if storage.stat(INFO_NAME) or storage.stat(MANIFEST_NAME):
        return True
    return any(entry.path.endswith(".tar") for entry in storage.list(SHARDS))
