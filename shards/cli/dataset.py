"""Commands on datasets that are there: index, stats, plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shards.errors import InputError

DatasetDir = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the dataset.")]


def index(
    root: DatasetDir,
    like: Annotated[
        Path | None,
        typer.Option(help="Dataset of the same model whose dataset.json to take, for foreign tars."),
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Shards scanned at once; default: CPUs.")] = None,
) -> None:
    """Rebuild manifest.parquet from shards/*.tar, checking every sample on the way."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from shards.dataset import read_info
    from shards.index import index as index_dataset

    info = read_info(like) if like else None
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("Scanning shards", total=None)
        manifest = index_dataset(
            root,
            info,
            threads=threads,
            on_shard=lambda _, total: progress.update(task, total=total, advance=1),
        )
    typer.echo(
        f"{root}: {len(manifest)} samples in {len(manifest.shards)} shards, "
        f"fingerprint {manifest.fingerprint}"
    )


def stats(root: DatasetDir) -> None:
    """Show what a dataset holds: totals, clip sizes, lengths."""
    from rich.console import Console

    from shards.dataset import open_dataset
    from shards.stats import render, summarize

    Console().print(render(summarize(open_dataset(root))))


def plan(
    root: DatasetDir,
    ranks: Annotated[str, typer.Option(help="Numbers of GPUs to plan for, as 8,64,512.")],
    samples_per_step: Annotated[
        int | None, typer.Option(help="Samples of an optimizer step, all GPUs.")
    ] = None,
    tokens_per_step: Annotated[int | None, typer.Option(help="Or tokens of an optimizer step.")] = None,
    mix: Annotated[str, typer.Option(help="random or similar.")] = "random",
    cap: Annotated[int, typer.Option(help="Most tokens in one GPU's micro-batch.")] = 65536,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 42,
    quadratic: Annotated[float, typer.Option(help="Cost of a sample is L + quadratic * L^2 tokens.")] = 6e-5,
    steps: Annotated[int, typer.Option(help="Most steps to lay out.")] = 100,
) -> None:
    """Show how well GPUs would be used by a dataset, before anything runs."""
    from rich.console import Console

    from shards.dataset import open_dataset
    from shards.efficiency import advice, render, report
    from shards.pack import check_cap
    from shards.plan import Batching

    counts = _ranks(ranks)
    if (samples_per_step is None) == (tokens_per_step is None):
        raise InputError("give exactly one of --samples-per-step and --tokens-per-step")
    if mix not in ("random", "similar"):
        raise InputError(f"--mix {mix!r}: random or similar")
    batching = Batching(samples_per_step, tokens_per_step, "random" if mix == "random" else "similar")
    manifest = open_dataset(root).manifest
    tokens = manifest.tokens()
    check_cap(manifest.keys.tolist(), tokens, cap)
    rows = report(tokens, manifest.ids, batching, counts, cap, quadratic, seed=seed, max_steps=steps)
    console = Console()
    # A pipe or a log file has no width of its own, and the table is wider than the 80 columns taken then.
    (console if console.is_terminal else Console(width=140)).print(render(rows))
    remark = advice(rows)
    if remark:
        typer.echo(remark)


def _ranks(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--ranks {text!r}: numbers of GPUs with commas between them, as 8,64,512")
    return [int(part) for part in parts]
