"""The command ``ltx-shards encode``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


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
