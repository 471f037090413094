"""The command ``ltx-shards decode``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shards.errors import InputError

_root = typer.Argument(metavar="DIR", help="Folder or URL of the dataset.")
_model = typer.Option("--model", "--model-source", help="Pipeline folder, hub id or version name; its VAE.")
_out = typer.Option("--out", "--output-dir", help="Folder to write the videos and pictures into.")
_keys = typer.Option(help="Keys of samples, with commas between them; may be repeated.")
_first = typer.Option(help="Or this many samples from the beginning; 8 where nothing is chosen.")
_random = typer.Option(help="Or this many at random, by --seed.")
_seed = typer.Option(help="Seed of --random, and of the noise of a VAE that takes some.")
_timestep = typer.Option(help="Timestep of a VAE that takes one (0.9.1 and later); 0 adds nothing.")
_noise = typer.Option(help="How much noise such a VAE gets; default: as --decode-timestep.")
_device = typer.Option(help="auto, cpu or cuda.")
_dtype = typer.Option(help="auto, bfloat16, float16 or float32.")
_tiling = typer.Option("--vae-tiling", help="Decode in tiles: less memory, slower.")
_force = typer.Option("--force", help="Decode although the VAE is not the one of the dataset.")
_crf = typer.Option(help="Quality of the videos: 0 is lossless, larger is smaller.")


def decode(
    root: Annotated[str, _root],
    model: Annotated[str, _model],
    out: Annotated[Path, _out],
    keys: Annotated[list[str] | None, _keys] = None,
    first: Annotated[int | None, _first] = None,
    random: Annotated[int | None, _random] = None,
    seed: Annotated[int, _seed] = 42,
    decode_timestep: Annotated[float, _timestep] = 0.0,
    decode_noise_scale: Annotated[float | None, _noise] = None,
    device: Annotated[str, _device] = "auto",
    dtype: Annotated[str, _dtype] = "auto",
    vae_tiling: Annotated[bool, _tiling] = False,
    force: Annotated[bool, _force] = False,
    crf: Annotated[int, _crf] = 16,
) -> None:
    """Turn samples back into videos and pictures, to look at what training sees; references come first.

    After a crash run the same command again: what is decoded is kept.
    """
    if sum(choice is not None for choice in (keys, first, random)) > 1:
        raise InputError("give one of --keys, --first and --random")

    from shards.prepare.decode.options import DecodeOptions
    from shards.prepare.decode.stage import INDEX_NAME
    from shards.prepare.decode.stage import decode as decode_samples
    from shards.prepare.work.progress import progress_bar

    options = DecodeOptions(
        keys=tuple(key.strip() for text in keys or () for key in text.split(",") if key.strip()),
        first=8 if first is None else first,
        random=random,
        seed=seed,
        timestep=decode_timestep,
        noise_scale=decode_noise_scale,
        device=device,
        dtype=dtype,
        vae_tiling=vae_tiling,
        force=force,
        crf=crf,
    )
    with progress_bar() as progress:
        task = progress.add_task("Decoding samples", total=None)
        report = decode_samples(
            root,
            model,
            out,
            options,
            on_sample=lambda done, total: progress.update(task, completed=done, total=total),
        )
    if report.remark:
        typer.echo(f"note: {report.remark}", err=True)
    for _, reason in report.failures:
        typer.echo(f"left out: {reason}", err=True)
    there = f", {report.existed} of them were there" if report.existed else ""
    typer.echo(f"{report.out}: {len(report.files)} samples, with their captions in {INDEX_NAME}{there}")
