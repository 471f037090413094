"""A table of clips and captions to a dataset: clips through the VAE, captions through the text encoder."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from shards.counted import counted
from shards.dataset.encoding import JOB
from shards.dataset.info import INFO_NAME, DatasetInfo, write_info
from shards.dataset.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from shards.dataset.output import writing
from shards.dataset.selection import join, select
from shards.errors import InputError
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
from shards.prepare.encode.options import EncodeOptions
from shards.prepare.encode.pairing import check_downscale
from shards.prepare.encode.report import EncodeReport
from shards.prepare.encode.request import CURES, check_request
from shards.prepare.encode.request import identity as request_identity
from shards.prepare.encode.stale import ATTEMPTS, DEADLY, rows_of, shard_name, staleness, units_of
from shards.prepare.encode.units import encode_unit, publish, stored_rows, without_left_out
from shards.prepare.encode.vae import vae_scale
from shards.prepare.failures import FAILURES_NAME, Failure, read_failures, write_failures
from shards.prepare.tables.table import Row, check_media
from shards.prepare.work.job import Job
from shards.prepare.work.progress import progress_bar
from shards.prepare.work.trial import marked_deadly
from shards.prepare.work.workers import ALONE, Worker
from shards.storage import Root, Storage, open_storage

DEFAULTS = EncodeOptions()


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
    died = marked_deadly(storage, DEADLY, [row.source for row in rows])
    with progress_bar(quiet=worker.index > 0) as progress, computing_alike(encoders.device):
        bar = progress.add_task("Encoding clips", total=len(rows))

        def on_units(done: int, total: int) -> None:
            progress.update(bar, completed=min(done * options.rows_per_shard, len(rows)))

        def do(unit: int, careful: bool = False) -> dict[str, Any]:
            chosen = rows_of(unit, rows, options)
            # Again: whoever began looked at all files, this keeps a disk that is away now out of the failures.
            check_media(dataset_file, _away(chosen))
            on_row = partial(progress.advance, bar)
            tried = [row for row in chosen if careful or row.source in died]
            return encode_unit(storage, unit, chosen, encoders, rules, options, on_row, tried)

        def describe(unit: int) -> str:
            chosen = rows_of(unit, rows, options)
            return f"{chosen[0].source} to {chosen[-1].source}"

        def finish(results: list[dict[str, Any]]) -> dict[str, Any]:
            return _finish(out, storage, results, encoders.describe)

        careful, settle = partial(do, careful=True), partial(publish, storage)
        result = job.run(worker, do, finish, on_units, describe, careful=careful, settle=settle)
    failures = read_failures(storage)
    if not result["samples"]:
        raise _nothing(dataset_file, failures)
    listed = len(read_manifest(out)) if was_complete else result["samples"]
    values = {**result, "failures": failures, "listed": listed, "seconds": time.perf_counter() - started}
    return EncodeReport(dataset_file, out, **values, was_complete=was_complete)


def _load(model: str | Path, buckets: Sequence[Bucket], options: EncodeOptions, worker: Worker) -> Encoders:
    """The networks, checked against the buckets before the large one is read."""
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
        **request_identity(dataset_file, rows, buckets, options),
        "vae": encoders.vae_fingerprint,
        "text_encoder": encoders.text_fingerprint,
        "device": encoders.device.type,
        "dtype": str(encoders.vae.dtype).removeprefix("torch."),
    }


def _job(
    storage: Storage,
    identity: Mapping[str, Any],
    rows: Sequence[Row],
    options: EncodeOptions,
    worker: Worker,
) -> Job:
    """The job of these rows, with the units open that are to be done again."""
    job = Job(storage, JOB, units_of(rows, options), identity, cures=CURES)
    why = staleness(storage, rows, options)
    reasons: set[str] = set()

    def stale(unit: int, result: Mapping[str, Any]) -> bool:
        reasons.add(reason := why(unit, result))
        return bool(reason)

    done = job.result()
    whole = not (done and done["samples"]) or all(map(storage.stat, (INFO_NAME, MANIFEST_NAME)))
    if again := job.reopen(stale, worker, whole):
        because = " or ".join(sorted(filter(None, reasons)))
        print(f"{storage.name}: {counted(again, 'shard')} made again: {because}", file=sys.stderr)
    return job


def _away(rows: Sequence[Row]) -> list[Row]:
    """Rows that miss a file together with all that was in its folder."""

    def is_away(path: Path) -> bool:
        return not path.is_file() and not (path.parent.is_dir() and any(path.parent.iterdir()))

    return [row for row in rows if any(map(is_away, (row.media, *row.references)))]


def _finish(
    out: Root, storage: Storage, results: Sequence[dict[str, Any]], describe: Callable[[], DatasetInfo]
) -> dict[str, Any]:
    """Everything beside the shards, from the results of all units; `dataset.json` comes last.

    Shards too whose worker was killed before it put them in place, or took them away. What repair left out stays out.
    """
    attempts = {entry.path for entry in storage.list(ATTEMPTS)}
    for unit, result in enumerate(results):
        if result["attempt"] is None or result["attempt"] in attempts:
            publish(storage, unit, result, result)
    for path in attempts - {result["attempt"] for result in results}:
        storage.remove(path)
    storage.sweep(ATTEMPTS)
    rows = [row for unit, result in enumerate(results) for row in stored_rows(unit, result)]
    failures = [entry for result in results for entry in result["failures"]]
    write_failures(storage, failures)
    buckets: dict[str, list[float]] = {}
    for result in results:
        for bucket, sums in result["buckets"].items():
            buckets[bucket] = [a + b for a, b in zip(buckets.get(bucket, [0, 0, 0]), sums, strict=True)]
    if rows:
        # Not alone, perhaps: a worker that stood still may be at this too, and writes the same.
        with writing(storage, patient=True):
            ours = Manifest.from_rows(without_left_out(storage, rows))
            write_manifest(out, join([ours, *_foreign(out, storage, len(results))]))
            write_info(out, describe())
    return {
        "samples": len(rows),
        "buckets": buckets,
        "pictures": sum(result["pictures"] for result in results),
        "failures": len(failures),
        "cut_captions": sum(result["cut_captions"] for result in results),
        "empty_captions": [source for result in results for source in result["empty_captions"]],
        "hardware": sorted({result["hardware"] for result in results}),
    }


def _foreign(out: Root, storage: Storage, units: int) -> list[Manifest]:
    """Samples of the manifest that is there whose shards this job does not make: of `index --append`, or a merge."""
    if storage.stat(MANIFEST_NAME):
        with suppress(InputError):  # damaged: it is replaced
            manifest = read_manifest(out)
            ours = {shard_name(unit) for unit in range(units)}
            foreign = np.array([name not in ours for name in manifest.shards], bool)[manifest.shard]
            return [select(manifest, foreign)]
    return []


def _nothing(dataset_file: Path, failures: Sequence[Failure]) -> InputError:
    source, reason = failures[0]
    return InputError(
        f"{dataset_file}: none of its {len(failures)} rows could be encoded; the first, {source}: {reason}. "
        f"All are listed in {FAILURES_NAME} of the output folder."
    )
