"""The command ``ltx-shards doctor``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.cli.printing import print_summary

if TYPE_CHECKING:
    from shards.doctor.diagnosis import Diagnosis

PICTURE_NAME = "doctor.png"


def doctor(
    root: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL of the dataset.")],
    repair: Annotated[
        bool, typer.Option("--repair", help="Write a manifest of the samples that are fit to be trained.")
    ] = False,
    picture: Annotated[
        Path | None, typer.Option(help="PNG of the lengths; default: doctor.png in a local dataset's folder.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
    text_limit: Annotated[int, typer.Option(help="Tokens that captions were cut at.")] = 256,
    threads: Annotated[int | None, typer.Option(help="Shards read at once; default: CPUs.")] = None,
) -> None:
    """Check a dataset: exit code 0 when it is sound, 1 when it is not, 2 when it cannot be looked at."""
    from rich.markup import escape

    from shards.doctor.diagnose import diagnose
    from shards.doctor.diagnosis import as_json, render, summary
    from shards.doctor.repair import repair as write_repair
    from shards.efficiency import outlook
    from shards.prepare.work.progress import progress_bar
    from shards.storage import check_writable

    if repair:
        check_writable(root)
    with progress_bar() as progress:
        task = progress.add_task("Checking shards", total=None)
        diagnosis = diagnose(
            root,
            text_limit=text_limit,
            threads=threads,
            on_shard=lambda total: progress.update(task, total=total, advance=1),
        )
    lines = write_repair(diagnosis) if repair else None
    mended = diagnosis.mended
    expected = outlook(mended.tokens(), mended.ids) if len(mended) else []
    drawn = _draw(diagnosis, picture)
    if json:
        typer.echo(as_json(diagnosis, expected, lines))
    else:
        written = map(escape, (*(lines or ()), drawn))
        print_summary(*render(diagnosis, expected), *summary(diagnosis, repair), *written)
    sound = diagnosis.sound or (repair and diagnosis.sound_when_mended)
    raise typer.Exit(0 if sound else 1)


def _draw(diagnosis: Diagnosis, path: Path | None) -> str:
    """Write the picture; what to say of it."""
    from shards.dataset.histogram import picture
    from shards.storage import Folder, is_url

    root = diagnosis.root
    if path is None and is_url(root):
        return "no picture of the lengths: give --picture FILE"
    if not len(diagnosis.mended):
        return "no picture: there is no sample"
    path = path or Path(root) / PICTURE_NAME
    try:
        Folder(path.parent).write(path.name, picture(diagnosis.mended, diagnosis.info.scale, str(root)))
    except OSError as error:
        return f"no picture of the lengths: {path}: {error.strerror}"
    return f"picture of the lengths: {path}"
