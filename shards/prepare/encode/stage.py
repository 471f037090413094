"""A table of clips and captions to a dataset: clips through the VAE, captions through the text encoder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import transformers

from shards.dataset.info import INFO_NAME, DatasetInfo, write_info
from shards.dataset.manifest import MANIFEST_NAME, Manifest, write_manifest
from shards.errors import InputError
from shards.formats import SHARDS
from shards.geometry import Bucket
from shards.prepare.encode.assign import Rules, check_buckets
from shards.prepare.encode.encoders import (
    Encoders,
    choose_device,
    choose_dtype,
    computing_alike,
    load_encoders,
)
from shards.prepare.encode.models import load_vae
from shards.prepare.encode.options import EncodeOptions, check
from shards.prepare.encode.options import identity as options_identity
from shards.prepare.encode.pairing import check_downscale
from shards.prepare.encode.report import EncodeReport
from shards.prepare.encode.units import encode_unit, file_sizes, publish, stored_rows
from shards.prepare.encode.vae import vae_scale
from shards.prepare.failures import FAILURES_NAME, Failure, read_failures, write_failures
from shards.prepare.tables.table import Row, check_media, digest, read_table
from shards.prepare.work.job import Job
from shards.prepare.work.progress import progress_bar
from shards.prepare.work.workers import ALONE, Worker
from shards.storage import Root, Storage, open_storage

JOB = ".encode"
ATTEMPTS = f"{JOB}/attempts"
DEFAULTS = EncodeOptions()
_ANEW_S = 30.0  # that workers wait for the first one where all rows failed the last time
_LOOK_S = 0.2
_OTHER_TABLE = (
    "encode the table as it was. New rows: put them into a table of their own, encode it into another folder and "
    "join both with `ltx-shards merge`. Other captions, or fewer rows: encode into another folder"
)


def encode(
    dataset_file: Path,
    model: str | Path,
    out: Root,
    buckets: Sequence[Bucket],
    *,
    options: EncodeOptions = DEFAULTS,
    worker: Worker = ALONE,
    rows: Sequence[Row] | None = None,
) -> EncodeReport:
    """Encode the clips of `dataset_file` into a dataset at `out`, a folder or a URL, as one of several workers.

    `model` is a pipeline folder, a hub id or a version name (its vae, text_encoder and tokenizer are used).
    A row that cannot be encoded is left out whole (clip, caption and references), listed in
    `out/failures.jsonl` and in the report. Any number of workers may take part, at once or after others were
    killed: the same inputs on the same kind of machine give the same bytes. Returns once all is done.
    `rows` are the table's, where `check_request` was called before.

    Raises InputError for unusable options, buckets or tables, for a place that already holds another dataset,
    and when no row could be encoded.
    """
    started = time.perf_counter()
    if rows is None:
        rows = check_request(dataset_file, out, buckets, options, worker)
    storage = open_storage(out)
    encoders = _load(model, buckets, options, worker)
    job = _job(storage, _identity(dataset_file, rows, buckets, options, encoders), rows, options, worker)
    was_complete = job.result() is not None
    rules = Rules(tuple(buckets), encoders.scale, options.windows, options.short_videos)
    with progress_bar(quiet=worker.index > 0) as progress, computing_alike(encoders.device):
        bar = progress.add_task("Encoding clips", total=len(rows))

        def on_units(done: int, total: int) -> None:
            progress.update(bar, completed=min(done * options.rows_per_shard, len(rows)))

        def do(unit: int, careful: bool = False) -> dict[str, Any]:
            chosen = _rows_of(unit, rows, options)
            # Again: whoever began looked at all files, this keeps a disk that is away now out of the failures.
            check_media(dataset_file, _away(chosen))
            on_row = partial(progress.advance, bar)
            return encode_unit(storage, ATTEMPTS, unit, chosen, encoders, rules, options, on_row, careful)

        def describe(unit: int) -> str:
            chosen = _rows_of(unit, rows, options)
            return f"{chosen[0].source} to {chosen[-1].source}"

        def finish(results: list[dict[str, Any]]) -> dict[str, Any]:
            return _finish(out, storage, results, encoders.describe)

        careful, settle = partial(do, careful=True), partial(publish, storage)
        result = job.run(worker, do, finish, on_units, describe, careful=careful, settle=settle)
    failures = read_failures(storage)
    if not result["samples"]:
        raise _nothing(dataset_file, failures)
    seconds = time.perf_counter() - started
    counted = {**result, "failures": failures}
    return EncodeReport(dataset_file, out, **counted, was_complete=was_complete, seconds=seconds)


def check_request(
    dataset_file: Path,
    out: Root,
    buckets: Sequence[Bucket],
    options: EncodeOptions,
    worker: Worker = ALONE,
) -> tuple[Row, ...]:
    """The rows of the table, once all is found in order that needs no model.

    Worker 0 looks for every file of a job that has not begun. Raises InputError.
    """
    check(options)
    if not buckets:
        raise InputError("no resolution bucket given: write for example 768x448x89")
    rows = read_table(dataset_file, options.caption_column, options.media_column, options.reference_column)
    if not _begun(open_storage(out), worker) and worker.index == 0:
        check_media(dataset_file, rows)
    return rows


def _begun(storage: Storage, worker: Worker) -> bool:
    """Whether a job was begun here. Raises InputError where there is a dataset that no job made."""
    described = f"{JOB}/job.json"
    if begun := storage.stat(described):
        if not storage.stat(f"{JOB}/result.json") or _holds_data(storage):
            return True
        # All rows failed the last time. What was wrong, files or options, will be different now: the first worker
        # begins anew, the others wait for that.
        if worker.index:
            until = time.monotonic() + _ANEW_S
            while storage.stat(described) == begun and time.monotonic() < until:
                time.sleep(_LOOK_S)
            return True
        for entry in storage.list(JOB):
            if entry.path != described:
                storage.remove(entry.path)
        storage.remove(described)
    elif _holds_data(storage):
        raise InputError(
            f"{storage.name} already holds a dataset, or a part of one: give another folder, or remove it first"
        )
    return False


def _holds_data(storage: Storage) -> bool:
    if storage.stat(INFO_NAME) or storage.stat(MANIFEST_NAME):
        return True
    return any(entry.path.endswith(".tar") for entry in storage.list(SHARDS))


def _load(model: str | Path, buckets: Sequence[Bucket], options: EncodeOptions, worker: Worker) -> Encoders:
    """The networks, checked against the buckets before the large one is read."""
    if worker.index > 0:
        transformers.utils.logging.disable_progress_bar()
    device = choose_device(options.device, worker.local)
    vae = load_vae(model, choose_dtype(options.dtype, device))
    check_buckets(buckets, vae_scale(vae))
    check_downscale(buckets, options.reference_downscale, vae_scale(vae))
    return load_encoders(model, vae, device, options)


def _identity(
    dataset_file: Path,
    rows: Sequence[Row],
    buckets: Sequence[Bucket],
    options: EncodeOptions,
    encoders: Encoders,
) -> dict[str, Any]:
    """All that the bytes of the dataset depend on."""
    return {
        "work": "encode",
        "rows": len(rows),
        "table": digest(dataset_file, rows),
        "buckets": ",".join(map(str, buckets)),
        "vae": encoders.vae_fingerprint,
        "text_encoder": encoders.text_fingerprint,
        "device": encoders.device.type,
        "dtype": str(encoders.vae.dtype).removeprefix("torch."),
        **options_identity(options),
    }


def _job(
    storage: Storage,
    identity: Mapping[str, Any],
    rows: Sequence[Row],
    options: EncodeOptions,
    worker: Worker,
) -> Job:
    """The job of these rows, with the units open that are to be done again."""
    units = -(-len(rows) // options.rows_per_shard)
    job = Job(storage, JOB, units, identity, cures={"rows": _OTHER_TABLE, "table": _OTHER_TABLE})

    def stale(unit: int, result: Mapping[str, Any]) -> bool:
        return _is_stale(_rows_of(unit, rows, options), result, options.retry_failed)

    if again := job.reopen(stale, worker):
        why = "rows failed or files changed" if options.retry_failed else "files changed"
        print(f"{storage.name}: {again} shards are made again: {why}", file=sys.stderr)
    return job


def _rows_of(unit: int, rows: Sequence[Row], options: EncodeOptions) -> Sequence[Row]:
    """The rows that go into one shard."""
    return rows[unit * options.rows_per_shard : (unit + 1) * options.rows_per_shard]


def _is_stale(rows: Sequence[Row], result: Mapping[str, Any], retry_failed: bool) -> bool:
    """Whether a unit is to be done again: one of its files changed its size or came back, or a row failed.

    What was there and is gone now keeps it: it could not be done again.
    """
    then, now = (list(chain(*sizes)) for sizes in (result["sizes"], file_sizes(rows)))
    if any(size is None and before is not None for before, size in zip(then, now, strict=True)):
        return False
    return then != now or (retry_failed and bool(result["failures"]))


def _away(rows: Sequence[Row]) -> list[Row]:
    """Rows that miss a file together with all that was in its folder."""

    def is_away(path: Path) -> bool:
        return not path.is_file() and not (path.parent.is_dir() and any(path.parent.iterdir()))

    return [row for row in rows if any(map(is_away, (row.media, *row.references)))]


def _finish(
    out: Root, storage: Storage, results: Sequence[dict[str, Any]], describe: Callable[[], DatasetInfo]
) -> dict[str, Any]:
    """Everything beside the shards, from the results of all units; `dataset.json` comes last.

    Shards too whose worker was killed before it put them in place.
    """
    attempts = {entry.path for entry in storage.list(ATTEMPTS)}
    for unit, result in enumerate(results):
        if result["attempt"] in attempts:
            publish(storage, unit, result, result)
    for path in attempts - {result["attempt"] for result in results}:
        storage.remove(path)
    storage.sweep(ATTEMPTS)
    rows = [row for unit, result in enumerate(results) for row in stored_rows(unit, result)]
    failures = [entry for result in results for entry in result["failures"]]
    write_failures(storage, failures)
    counts: dict[str, int] = {}
    for result in results:
        for bucket, count in result["buckets"].items():
            counts[bucket] = counts.get(bucket, 0) + count
    if rows:
        write_manifest(out, Manifest.from_rows(rows))
        write_info(out, describe())
    return {
        "samples": len(rows),
        "buckets": counts,
        "failures": len(failures),
        "cut_captions": sum(result["cut_captions"] for result in results),
        "empty_captions": [source for result in results for source in result["empty_captions"]],
        "hardware": sorted({result["hardware"] for result in results}),
    }


def _nothing(dataset_file: Path, failures: Sequence[Failure]) -> InputError:
    source, reason = failures[0]
    return InputError(
        f"{dataset_file}: none of its {len(failures)} rows could be encoded; the first, {source}: {reason}. "
        f"All are listed in {FAILURES_NAME} of the output folder."
    )
