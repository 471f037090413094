"""The command ``ltx-shards encode``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.cli.printing import print_summary
from shards.counted import counted
from shards.errors import InputError

if TYPE_CHECKING:
    from shards.geometry import Bucket
    from shards.prepare.encode.options import EncodeOptions
    from shards.prepare.tables.table import Row
    from shards.prepare.work.workers import Worker

Table = Annotated[Path, typer.Argument(metavar="DATASET", help="CSV, JSON or JSONL of clips and captions.")]
_model = typer.Option(
    "--model", "--model-source", help="Pipeline folder, hub id or version name; its VAE and text encoder."
)
_out = typer.Option("--out", "--output-dir", help="Folder or URL to write the dataset into.")
_buckets = typer.Option(
    "--buckets", "--resolution-buckets", help="Sizes to bring clips to, as 768x448x89,512x512x1."
)
_captions = typer.Option(help="Column of the captions.")
_media = typer.Option("--media-column", "--video-column", help="Column of the clips' paths.")
_references = typer.Option(help="Column of reference clips, or several as depth,edges; '' leaves them out.")
_id_token = typer.Option(help="Word put before every caption.")
_reshape = typer.Option(help="Where clips are cut to shape: center or random.")
_windows = typer.Option(help="Most samples of a long clip, spread evenly over it: a number, or all that fit.")
_short = typer.Option(
    help="Videos shorter than every video bucket: leave them out, or make a picture. Without a video bucket in "
    "--buckets all videos become pictures."
)
_downscale = typer.Option(help="Encode references with sides this many times smaller.")
_rows = typer.Option(help="Rows of the table that go into one shard.")
_seed = typer.Option(help="Seed of the latents' noise and of random crops.")
_workers = typer.Option(
    help="Processes to start here, on a CPU one for each core; unset: one, or the rank that torchrun or srun gave."
)
_worker = typer.Option(help="Which of the --workers this process is, from 0, where no launcher says so.")
_device = typer.Option(help="auto, cpu or cuda; each worker of a host takes the next GPU.")
_dtype = typer.Option(help="Of the networks: auto, bfloat16, float16 or float32.")
_tiling = typer.Option(help="Encode in tiles: less memory, slower.")
_batch = typer.Option("--vae-batch", "--batch-size", help="Clips of one size that the VAE takes at once.")
_swap = typer.Option(help="Keep only one of text encoder and VAE on the GPU at a time.")
_8bit = typer.Option(
    "--text-encoder-8bit", "--load-text-encoder-in-8bit", help="Half its memory; needs bitsandbytes."
)
_threads = typer.Option(
    help="Clips decoded at a time, ahead of the VAE; so many windows and 3 more are in memory (89 frames of "
    "768x448: 92 MB, and as much for each reference)."
)
_patience = typer.Option(help="Minutes for the next frames of a clip; then its process is given up.")
_retry = typer.Option(help="Make the shards again that rows are missing from, to try these once more.")


def encode(
    dataset: Table,
    model: Annotated[str, _model],
    out: Annotated[str, _out],
    buckets: Annotated[str, _buckets],
    caption_column: Annotated[str, _captions] = "caption",
    media_column: Annotated[str, _media] = "media_path",
    reference_column: Annotated[str, _references] = "reference_path",
    id_token: Annotated[str | None, _id_token] = None,
    reshape_mode: Annotated[str, _reshape] = "center",
    windows: Annotated[str, _windows] = "1",
    short_videos: Annotated[str, _short] = "leave",
    reference_downscale: Annotated[int, _downscale] = 1,
    rows_per_shard: Annotated[int, _rows] = 64,
    seed: Annotated[int, _seed] = 42,
    workers: Annotated[int | None, _workers] = None,
    worker: Annotated[int | None, _worker] = None,
    device: Annotated[str, _device] = "auto",
    dtype: Annotated[str, _dtype] = "auto",
    vae_tiling: Annotated[bool, _tiling] = False,
    vae_batch: Annotated[int, _batch] = 1,
    swap_models: Annotated[bool, _swap] = False,
    text_encoder_8bit: Annotated[bool, _8bit] = False,
    decode_threads: Annotated[int, _threads] = 4,
    patience: Annotated[float, _patience] = 30.0,
    retry_failed: Annotated[bool, _retry] = False,
) -> None:
    """Encode raw clips and captions into a dataset of latents and text embeddings.

    Run the same command again, with any number of workers, after a crash, which keeps what is complete, and after
    files of the table were replaced, which makes their shards again.
    """
    from shards.prepare.encode.options import EncodeOptions
    from shards.prepare.work.workers import this_worker

    options = EncodeOptions(
        caption_column=caption_column,
        media_column=media_column,
        reference_column=reference_column or None,
        id_token=id_token,
        reshape_mode=reshape_mode,
        windows=_number_of_windows(windows),
        short_videos=short_videos,
        reference_downscale=reference_downscale,
        rows_per_shard=rows_per_shard,
        seed=seed,
        device=device,
        dtype=dtype,
        vae_tiling=vae_tiling,
        vae_batch=vae_batch,
        swap_models=swap_models,
        text_encoder_8bit=text_encoder_8bit,
        decode_threads=decode_threads,
        patience_s=60 * patience,
        retry_failed=retry_failed,
    )
    me = this_worker(os.environ, worker, workers)
    _encode(dataset, model, out, _parsed(buckets), options, me, workers or 1)


def _encode(
    dataset: Path,
    model: str,
    out: str,
    buckets: Sequence[Bucket],
    options: EncodeOptions,
    me: Worker | None,
    count: int,
) -> None:
    """Take part as worker `me`, or as the first of `count` that are started here. The first one reports."""
    # Before torch comes: its threads give way to those that decode and to other workers, and do not spin.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from shards.prepare.encode.report import render
    from shards.prepare.encode.request import check_request, is_over
    from shards.prepare.work.workers import Worker, crew

    rows = check_request(dataset, out, buckets, options, me or Worker())
    if me and me.index and is_over(out, rows, options):
        return
    count = _useful(me, count, rows, options)
    with nullcontext(me) if me else crew(sys.argv[1:], count) as worker:
        from shards.prepare.encode.stage import encode as encode_dataset

        report = encode_dataset(dataset, model, out, buckets, options=options, worker=worker, rows=rows)
    if worker.index == 0:
        print_summary(render(report))


def _useful(me: Worker | None, count: int, rows: Sequence[Row], options: EncodeOptions) -> int:
    """How many of `count` workers to start; says so where there are more of them than units of work."""
    from shards.prepare.encode.stale import units_of

    units, workers = units_of(rows, options), me.count if me else count
    if workers <= units:
        return count
    if not (me and me.index):
        print(
            f"note: {counted(units, 'unit')} of {options.rows_per_shard} rows: {units} of {workers} workers "
            f"{'has' if units == 1 else 'have'} work; see --rows-per-shard",
            file=sys.stderr,
        )
    return units


def _parsed(buckets: str) -> Sequence[Bucket]:
    from shards.geometry import Bucket

    try:
        return Bucket.parse_list(buckets)
    except InputError as error:
        raise InputError(f"--buckets: {error}") from error


def _number_of_windows(text: str) -> int | None:
    if text == "all":
        return None
    if not text.isdecimal():
        raise InputError(f"--windows {text!r}: a number, or all")
    return int(text)
