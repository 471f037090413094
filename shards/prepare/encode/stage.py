"""A table of clips and captions to a dataset: clips through the VAE, captions through the text encoder."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import transformers

from shards.dataset.info import INFO_NAME, DatasetInfo, write_info
from shards.dataset.manifest import MANIFEST_NAME, Manifest, write_manifest
from shards.errors import InputError
from shards.formats import SHARDS
from shards.geometry import Bucket
from shards.prepare.encode.assign import Rules, check_buckets
from shards.prepare.encode.encoders import Encoders, choose_device, choose_dtype, load_encoders
from shards.prepare.encode.models import load_vae
from shards.prepare.encode.options import EncodeOptions, check, identity
from shards.prepare.encode.pairing import check_downscale
from shards.prepare.encode.report import EncodeReport
from shards.prepare.encode.units import encode_unit, stored_rows
from shards.prepare.encode.vae import vae_scale
from shards.prepare.failures import FAILURES_NAME, Failure, read_failures, write_failures
from shards.prepare.tables.table import Row, check_media, digest, read_table
from shards.prepare.work.job import Job
from shards.prepare.work.progress import progress_bar
from shards.prepare.work.workers import Worker
from shards.storage import Root, Storage, open_storage

JOB = ".encode"
DEFAULTS = EncodeOptions()
ALONE = Worker()


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
    size = options.rows_per_shard
    job = Job(storage, JOB, -(-len(rows) // size), _identity(dataset_file, rows, buckets, options, encoders))
    was_complete = job.result() is not None
    rules = Rules(tuple(buckets), encoders.scale, options.windows, options.short_videos)
    with progress_bar(quiet=worker.index > 0) as progress:
        bar = progress.add_task("Encoding clips", total=len(rows))

        def on_units(done: int, total: int) -> None:
            progress.update(bar, completed=min(done * size, len(rows)))

        def do(unit: int) -> dict[str, Any]:
            chosen = rows[unit * size : (unit + 1) * size]
            # Again: whoever began looked at all files, this keeps a disk that is away now out of the failures.
            check_media(dataset_file, chosen)
            on_row = partial(progress.advance, bar)
            return encode_unit(storage, unit, chosen, encoders, rules, options, on_row)

        def describe(unit: int) -> str:
            chosen = rows[unit * size : (unit + 1) * size]
            return f"{chosen[0].source} to {chosen[-1].source}"

        def finish(results: list[dict[str, Any]]) -> dict[str, Any]:
            return _finish(out, storage, results, encoders.describe)

        result = job.run(worker, do, finish, on_units, describe)
    failures = read_failures(storage)
    if not result["samples"]:
        raise _nothing(dataset_file, failures)
    seconds = time.perf_counter() - started
    return EncodeReport(out, **{**result, "failures": failures}, was_complete=was_complete, seconds=seconds)


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
    if storage.stat(f"{JOB}/job.json"):
        if worker.index or not storage.stat(f"{JOB}/result.json") or _holds_data(storage):
            return True
        # All rows failed the last time. What was wrong, files or options, will be different now.
        for entry in reversed(storage.list(JOB)):
            storage.remove(entry.path)
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
        "table": digest(dataset_file, rows),
        "model": encoders.model,
        "buckets": ",".join(map(str, buckets)),
        "vae": encoders.vae_fingerprint,
        "text_encoder": encoders.text_fingerprint,
        "dtype": str(encoders.vae.dtype).removeprefix("torch."),
        **identity(options),
    }


def _finish(
    out: Root, storage: Storage, results: Sequence[dict[str, Any]], describe: Callable[[], DatasetInfo]
) -> dict[str, Any]:
    """Everything beside the shards, from the results of all units; `dataset.json` comes last."""
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
    storage.sweep(SHARDS)
    return {
        "samples": len(rows),
        "buckets": counts,
        "failures": len(failures),
        "cut_captions": sum(result["cut_captions"] for result in results),
        "empty_captions": sum(result["empty_captions"] for result in results),
    }


def _nothing(dataset_file: Path, failures: Sequence[Failure]) -> InputError:
    source, reason = failures[0]
    return InputError(
        f"{dataset_file}: none of its {len(failures)} rows could be encoded; the first, {source}: {reason}. "
        f"All are listed in {FAILURES_NAME} of the output folder."
    )
