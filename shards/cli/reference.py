"""The command ``ltx-shards reference``."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.cli.printing import print_summary
from shards.errors import InputError

if TYPE_CHECKING:
    from shards.prepare.reference.stage import ReferenceReport

_table = typer.Argument(metavar="TABLE", help="CSV, JSON or JSONL of clips.")
_kind = typer.Option(help="canny, blur, grayscale or downscale.")
_compute = typer.Option(
    metavar="FILE:FUNCTION",
    help="Or your own: my_file.py:compute_condition, from uint8 [F,H,W,3] frames of a whole clip to as many.",
)
_out = typer.Option(help="Table to write, in the same folder; default: TABLE itself.")
_column = typer.Option(help="Column of the references.")
_media = typer.Option("--media-column", "--video-column", help="Column of the clips' paths.")
_append = typer.Option("--append", help="Keep the references a row has: several per sample.")
_replace = typer.Option("--replace", help="Let the new references take the place of those a row has.")
_overwrite = typer.Option("--overwrite", "--override", help="Make again what is there.")
_low = typer.Option(help="canny: lower threshold, default 100.")
_high = typer.Option(help="canny: upper threshold, default 200.")
_sigma = typer.Option(help="blur: standard deviation in pixels, default 4.")
_factor = typer.Option(help="downscale: how many times smaller, 2 (the default) to 64.")
_keep = typer.Option("--keep-size", help="downscale: blow the frames up again.")
_crf = typer.Option(help="Quality of the videos: 0 is lossless, larger is smaller.")
_workers = typer.Option(help="Processes on this machine.")
_worker = typer.Option(help="Which of the --workers this process is, from 0, where no launcher says so.")


def reference(
    table: Annotated[Path, _table],
    kind: Annotated[str | None, _kind] = None,
    compute: Annotated[str | None, _compute] = None,
    out: Annotated[Path | None, _out] = None,
    column: Annotated[str, _column] = "reference_path",
    media_column: Annotated[str, _media] = "media_path",
    append: Annotated[bool, _append] = False,
    replace: Annotated[bool, _replace] = False,
    overwrite: Annotated[bool, _overwrite] = False,
    low: Annotated[int | None, _low] = None,
    high: Annotated[int | None, _high] = None,
    sigma: Annotated[float | None, _sigma] = None,
    factor: Annotated[int | None, _factor] = None,
    keep_size: Annotated[bool, _keep] = False,
    crf: Annotated[int, _crf] = 12,
    workers: Annotated[int | None, _workers] = None,
    worker: Annotated[int | None, _worker] = None,
) -> None:
    """Make the reference clips of an IC-LoRA dataset and name them in its table.

    After a crash run the same command again, with any number of workers: what is complete is kept.
    """

    from shards.prepare.reference.filters import FilterOptions, builtin, plugin
    from shards.prepare.reference.stage import ROWS_PER_UNIT, ReferenceOptions, check_request, make_references
    from shards.prepare.work.progress import progress_bar
    from shards.prepare.work.workers import crew, this_worker

    if (kind is None) == (compute is None):
        raise InputError("give exactly one of --kind and --compute")
    settings = FilterOptions(low, high, sigma, factor, keep_size or None)
    if compute is not None and settings != FilterOptions():
        raise InputError(
            "--low, --high, --sigma, --factor and --keep-size are settings of --kind, not of --compute"
        )
    options = ReferenceOptions(out, column, media_column, append, replace, overwrite, crf)
    me = this_worker(os.environ, worker, workers)
    request = check_request(table, plugin(compute) if compute else builtin(str(kind), settings), options)
    with (
        nullcontext(me) if me else crew(sys.argv[1:], workers or 1) as place,
        progress_bar(quiet=place.index > 0) as progress,
    ):
        clips = len(request.references)
        task = progress.add_task("Making references", total=clips)
        report = make_references(
            request,
            place,
            lambda done, units: progress.update(task, completed=min(done * ROWS_PER_UNIT, clips)),
        )
    if place.index == 0:
        _tell(report)


def _tell(report: ReferenceReport) -> None:
    from shards.prepare.failures import FAILURES_NAME, failures_table

    failures = report.failures
    typer.echo(
        f"{report.table}: {report.references} references in {report.folder}, {len(failures)} clips got none"
    )
    if failures:
        title = f"{len(failures)} clips without a reference, all listed in {report.folder}/{FAILURES_NAME}"
        print_summary(failures_table(failures, title))
