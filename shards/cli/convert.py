"""The command ``ltx-shards convert``."""

from __future__ import annotations

from typing import Annotated

import typer

from shards.cli.dataset import advice_on_damage


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
    typer.echo(
        f"{out}: {report.samples} samples in {report.shards} shards, {report.nbytes / 1e6:.1f} MB, "
        f"fingerprint {report.fingerprint}"
    )
    if report.left_behind:
        others = ", ".join(
            f"{count} {name or 'without an extension'}" for name, count in report.left_behind.items()
        )
        typer.echo(f"left behind, as only json and safetensors are taken: {others}")
