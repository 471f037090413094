"""The command ``ltx-shards import``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.cli.printing import print_summary
from shards.counted import counted

if TYPE_CHECKING:
    from shards.prepare.importing.stage import ImportReport


def import_folder(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="LTX-Video-Trainer's .precomputed, or the folder it is in.")
    ],
    out: Annotated[str, typer.Option(help="Folder or URL to write the dataset into.")],
    model: Annotated[
        str | None,
        typer.Option(
            help="What it was encoded with: fingerprints and the empty caption go into dataset.json."
        ),
    ] = None,
    dataset: Annotated[
        Path | None, typer.Option(help="The CSV, JSON or JSONL it was made from, for captions and keys.")
    ] = None,
    caption_column: Annotated[str, typer.Option(help="Column of the captions.")] = "caption",
    media_column: Annotated[str, typer.Option(help="Column of the clips' paths.")] = "media_path",
    reference_dir: Annotated[
        list[str] | None,
        typer.Option(
            help="Folder of reference latents, may be repeated; default: reference_latents, if any."
        ),
    ] = None,
    no_references: Annotated[bool, typer.Option("--no-references", help="Leave references out.")] = False,
    fps: Annotated[float, typer.Option(help="Frame rate of files that say none.")] = 24.0,
    shard_bytes: Annotated[int, typer.Option(help="Size at which a shard is closed, in bytes.")] = 256 << 20,
) -> None:
    """Turn a folder that LTX-Video-Trainer preprocessed into a dataset, with the same numbers."""

    from shards.prepare.importing.stage import ImportOptions, import_precomputed
    from shards.prepare.work.progress import progress_bar

    options = ImportOptions(
        references=[] if no_references else reference_dir or None,
        fps=fps,
        table=dataset,
        caption_column=caption_column,
        media_column=media_column,
        model=model,
        shard_bytes=shard_bytes,
    )
    with progress_bar() as progress:
        task = progress.add_task("Importing samples", total=None)
        report = import_precomputed(
            folder, out, options, on_sample=lambda total: progress.update(task, total=total, advance=1)
        )
    _tell(report, out)


def _tell(report: ImportReport, out: str) -> None:
    """What was left out, notes, and the sum of it all."""
    from shards.prepare.failures import FAILURES_NAME, failures_table

    if report.failures:
        title = f"{counted(len(report.failures), 'file')} left out, all listed in {out}/{FAILURES_NAME}"
        print_summary(failures_table(report.failures, title))
    for note in report.notes:
        typer.echo(f"note: {note}")
    if report.was_complete:
        typer.echo(f"{out} is complete: {counted(report.samples, 'sample')}, nothing left to do")
        return
    paired = f", each with {', '.join(report.references)}" if report.references else ""
    typer.echo(
        f"{out}: {counted(report.samples, 'sample')}{paired} in {report.seconds:.0f} s, {len(report.failures)} left out"
    )
