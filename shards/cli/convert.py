"""The command ``ltx-shards convert``."""

from __future__ import annotations

from typing import Annotated

import typer

from shards.cli.dataset import advice_on_damage, listed
from shards.counted import counted


def convert(
    root: Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL of the dataset.")],
    to: Annotated[str, typer.Option(help="tar (WebDataset) or mds (MosaicML).")],
    out: Annotated[str, typer.Option(help="Folder or URL to write the dataset into.")],
) -> None:
    """Write a dataset with shards of the other format: its samples' tensors and json, to the byte.

    Other files or columns in the shards are left behind, and counted at the end.
    """

    from shards.dataset.convert import convert as convert_dataset
    from shards.prepare.work.progress import progress_bar

    with progress_bar() as progress, advice_on_damage(root):
        task = progress.add_task("Converting samples", total=None)
        report = convert_dataset(
            root, out, to, on_sample=lambda total: progress.update(task, total=total, advance=1)
        )
    done = "is complete, nothing was left to do: " if report.was_complete else ""
    typer.echo(
        f"{out}: {done}{counted(report.samples, 'sample')} in {counted(report.shards, 'shard')}, "
        f"{report.nbytes / 1e6:.1f} MB, fingerprint {report.fingerprint}"
    )
    if report.left_behind:
        typer.echo(f"left behind, as only json and safetensors are taken: {listed(report.left_behind)}")
