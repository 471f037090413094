"""The command ``ltx-shards``: make, rebuild and look at datasets. Heavy imports are inside the commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shards.errors import InputError, ShardError

app = typer.Typer(
    name="ltx-shards",
    help="Datasets for LTX training: encode clips into shards, rebuild manifests, look at data and plans.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

DatasetDir = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the dataset.")]


@app.command()
def encode(
    dataset: Annotated[
        Path, typer.Argument(metavar="DATASET", help="CSV, JSON or JSONL of clips and captions.")
    ],
    model: Annotated[
        str, typer.Option(help="Pipeline folder, hub id or version name; its VAE and text encoder.")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the dataset into.")],
    buckets: Annotated[str, typer.Option(help="Sizes to bring clips to, as 768x448x89,512x512x1.")],
    caption_column: Annotated[str, typer.Option(help="Column of the captions.")] = "caption",
    media_column: Annotated[str, typer.Option(help="Column of the clips' paths.")] = "media_path",
    reference_column: Annotated[
        str, typer.Option(help="Column of reference clips; '' to leave them out.")
    ] = ("reference_path"),
    id_token: Annotated[str | None, typer.Option(help="Word put before every caption.")] = None,
    reshape_mode: Annotated[
        str, typer.Option(help="Where clips are cut to shape: center or random.")
    ] = "center",
    shard_bytes: Annotated[int, typer.Option(help="Size at which a shard is closed, in bytes.")] = 256 << 20,
    seed: Annotated[int, typer.Option(help="Seed of the latents' noise and of random crops.")] = 42,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    vae_tiling: Annotated[bool, typer.Option(help="Encode in tiles: less memory, slower.")] = False,
) -> None:
    """Encode raw clips and captions into a dataset of latents and text embeddings."""
    from shards.geometry import Bucket
    from shards.prepare.encode import EncodeOptions
    from shards.prepare.encode import encode as encode_dataset

    options = EncodeOptions(
        caption_column=caption_column,
        media_column=media_column,
        reference_column=reference_column or None,
        id_token=id_token,
        reshape_mode=reshape_mode,
        shard_bytes=shard_bytes,
        seed=seed,
        device=device,
        vae_tiling=vae_tiling,
    )
    report = encode_dataset(dataset, model, out, Bucket.parse_list(buckets), options=options)
    typer.echo(
        f"{report.out}: {report.samples} samples in {report.seconds:.0f} s, {len(report.failures)} left out"
    )
    for bucket, count in report.buckets.items():
        typer.echo(f"  {bucket}: {count}")


@app.command()
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


@app.command()
def stats(root: DatasetDir) -> None:
    """Show what a dataset holds: totals, clip sizes, lengths."""
    from rich.console import Console

    from shards.dataset import open_dataset
    from shards.stats import render, summarize

    Console().print(render(summarize(open_dataset(root))))


@app.command()
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


def main() -> None:
    """Entry point of ``ltx-shards``: a user's mistake is one line and exit code 2, no traceback."""
    try:
        app()
    except (InputError, ShardError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
