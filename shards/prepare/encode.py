"""A table of clips and captions to a dataset: clips through the VAE, captions through the text encoder."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from shards.atomic import replacing
from shards.dataset import INFO_NAME, DatasetInfo, Source, pack_embeds, write_info
from shards.errors import InputError
from shards.geometry import Bucket
from shards.hashing import mix, sample_id
from shards.manifest import MANIFEST_NAME, write_manifest
from shards.prepare.assign import (
    REFERENCE_NOISE,
    TARGET_NOISE,
    Decoded,
    Failure,
    Job,
    assign,
    check_buckets,
    decode,
)
from shards.prepare.models import DTYPES, fingerprint, load_text_encoder, load_tokenizer, load_vae
from shards.prepare.table import REFERENCE_COLUMN, read_table
from shards.prepare.text import PromptFile, encode_prompt, prompt_of
from shards.prepare.vae import encode_clip, vae_scale
from shards.sample import payload
from shards.stream import stream
from shards.tar import DEFAULT_SHARD_BYTES, SHARDS, ShardWriter, sample_json

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTXVideo
    from torch import Tensor

FAILURES_NAME = "failures.jsonl"
_LISTED = 20


@dataclass(frozen=True)
class EncodeOptions:
    """How to encode; what is stored is bfloat16 whatever `dtype` is.

    `max_text_tokens` is the length that captions are padded to for the encoder, and cut at: 256 as in
    Lightricks' trainer, whatever the tokenizer's own `model_max_length` says (diffusers converted it with
    128). The embedding of every token depends on it.
    """

    caption_column: str = "caption"
    media_column: str = "media_path"
    reference_column: str | None = REFERENCE_COLUMN  # None leaves references out
    id_token: str | None = None  # put before every caption
    reshape_mode: str = "center"  # or random: where a clip is cut to its bucket's shape
    seed: int = 42
    shard_bytes: int = DEFAULT_SHARD_BYTES
    device: str = "auto"  # cuda where there is one
    dtype: str = (
        "auto"  # of the networks: bfloat16 on a GPU, float32 on a CPU (where bfloat16 is ten times slower)
    )
    vae_tiling: bool = False
    max_text_tokens: int = 256


@dataclass(frozen=True)
class EncodeReport:
    """What `encode` did; `buckets` counts samples, `cut_captions` captions too long for the text encoder."""

    out: Path
    samples: int
    buckets: dict[str, int]
    failures: tuple[Failure, ...]
    cut_captions: int
    seconds: float


def encode(
    dataset_file: Path,
    model: str | Path,
    out: Path,
    buckets: Sequence[Bucket],
    *,
    options: EncodeOptions = EncodeOptions(),
) -> EncodeReport:
    """Encode the clips of `dataset_file` into a dataset in the folder `out`.

    `model` is a pipeline folder, a hub id or a version name (its vae, text_encoder and tokenizer are used).
    A row that cannot be encoded is left out whole (clip, caption and reference), listed in
    `out/failures.jsonl` and in the report. The same inputs on the same machine give the same bytes. Raises
    InputError for unusable options, buckets or tables, for a folder that already holds a dataset, and when
    no row could be encoded.
    """
    started = time.perf_counter()
    _check(options, out)
    device = _device(options.device)
    dtype = _dtype(options.dtype, device)
    console = Console(stderr=True)
    rows = read_table(dataset_file, options.caption_column, options.media_column, options.reference_column)
    vae = load_vae(model, dtype)
    check_buckets(buckets, vae_scale(vae))
    out.mkdir(parents=True, exist_ok=True)
    with _progress(console) as progress:
        found = list(progress.track(assign(rows, buckets), len(rows), description="Opening clips"))
        jobs = [entry for entry in found if isinstance(entry, Job)]
        failures = [entry for entry in found if isinstance(entry, Failure)]
        if not jobs:
            _report_failures(out, failures, console)
            raise _nothing(dataset_file, failures)
        with closing(PromptFile(out)) as prompts:
            text = _encode_captions(jobs, model, device, dtype, options, prompts, progress)
            vae.to(device)
            if options.vae_tiling:
                vae.enable_tiling()
            with ShardWriter(out, options.shard_bytes) as writer:
                done, late = _encode_clips(jobs, vae, prompts, writer, options, progress)
            cut = prompts.cut
    failures += late
    _report_failures(out, failures, console)
    if not done:
        raise _nothing(dataset_file, failures)
    write_manifest(out, writer.manifest())
    write_info(
        out,
        DatasetInfo(
            channels=vae.config.latent_channels,
            text_width=text.null.shape[1],
            scale=vae_scale(vae),
            vae=Source(str(model), fingerprint(vae)),
            text_encoder=text.source,
            null_prompt_embeds=pack_embeds(text.null),
        ),
    )
    seconds = time.perf_counter() - started
    return EncodeReport(out, sum(done.values()), dict(done), tuple(failures), cut, seconds)


@dataclass(frozen=True)
class _Text:
    source: Source
    null: Tensor  # [T, D] embedding of the empty caption


def _check(options: EncodeOptions, out: Path) -> None:
    if options.reshape_mode not in ("center", "random"):
        raise InputError(f"reshape_mode {options.reshape_mode!r} is not known: use center or random")
    if options.max_text_tokens < 1:
        raise InputError(f"max_text_tokens {options.max_text_tokens} must be at least 1")
    if (out / INFO_NAME).exists() or (out / MANIFEST_NAME).exists() or any((out / SHARDS).glob("*.tar")):
        raise InputError(
            f"{out} already holds a dataset, or a part of one: give another folder, or remove it first"
        )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        # Asking for memory is the only test that covers every kind of device.
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"device {name!r} cannot be used: {first}") from error


def _dtype(name: str, device: torch.device) -> torch.dtype:
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise InputError(f"dtype {name!r} is not known: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]


def _encode_captions(
    jobs: Sequence[Job],
    model: str | Path,
    device: torch.device,
    dtype: torch.dtype,
    options: EncodeOptions,
    prompts: PromptFile,
    progress: Progress,
) -> _Text:
    """Fill `prompts`. The text encoder (T5 XXL: 9 GB) is gone on return, before the VAE needs the memory."""
    tokenizer = load_tokenizer(model)
    encoder = load_text_encoder(model, dtype)
    source = Source(str(model), fingerprint(encoder))
    encoder.to(device)
    for job in progress.track(jobs, description="Encoding captions"):
        prompts.add(tokenizer, encoder, prompt_of(job.row.caption, options.id_token), options.max_text_tokens)
    null, _ = encode_prompt(tokenizer, encoder, "", options.max_text_tokens)
    del encoder
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return _Text(source, null)


def _encode_clips(
    jobs: Sequence[Job],
    vae: AutoencoderKLLTXVideo,
    prompts: PromptFile,
    writer: ShardWriter,
    options: EncodeOptions,
    progress: Progress,
) -> tuple[Counter[str], list[Failure]]:
    """Samples written per bucket, and the jobs that failed after all."""
    done: Counter[str] = Counter()
    failures: list[Failure] = []
    load = partial(decode, seed=options.seed, reshape_mode=options.reshape_mode)
    # Decoding goes on in other threads while the VAE works: both leave the interpreter lock.
    with stream(jobs, load, depth=4, name="decode", threads=2) as clips:
        for clip in progress.track(clips, len(jobs), description="Encoding clips"):
            if isinstance(clip, Failure):
                failures.append(clip)
                continue
            row, info, bucket = clip.job
            tensors = _latents(vae, clip, options.seed)
            if not all(bool(latents.isfinite().all()) for latents in tensors.values()):
                failures.append(
                    Failure(row.source, f"the VAE gave numbers that are not finite in {vae.dtype}")
                )
                continue
            prompt = prompt_of(row.caption, options.id_token)
            tensors["prompt_embeds"] = prompts[prompt]
            meta = sample_json(
                caption=prompt,
                source=row.source,
                fps=info.fps,
                width=info.width,
                height=info.height,
                frames=info.frames,
                bucket=bucket,
            )
            writer.add(row.key, meta, payload(tensors))
            done[str(bucket)] += 1
    return done, failures


def _latents(vae: AutoencoderKLLTXVideo, clip: Decoded, seed: int) -> dict[str, Tensor]:
    identity = sample_id(clip.job.row.key)

    def noise(purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(int(mix(seed, identity, purpose)))

    tensors = {"latents": encode_clip(vae, clip.target, noise(TARGET_NOISE))}
    if clip.reference is not None:
        tensors["reference_latents"] = encode_clip(vae, clip.reference, noise(REFERENCE_NOISE))
    return tensors


def _nothing(dataset_file: Path, failures: Sequence[Failure]) -> InputError:
    source, reason = failures[0]
    return InputError(
        f"{dataset_file}: none of its {len(failures)} rows could be encoded; the first, {source}: {reason}. "
        f"All are listed in {FAILURES_NAME} of the output folder."
    )


def _report_failures(out: Path, failures: Sequence[Failure], console: Console) -> None:
    if not failures:
        (out / FAILURES_NAME).unlink(missing_ok=True)
        return
    with replacing(out / FAILURES_NAME) as file:
        for failure in failures:
            file.write((json.dumps(failure._asdict(), ensure_ascii=False) + "\n").encode())
    table = Table(
        "left out", "reason", title=f"{len(failures)} rows were not encoded ({out / FAILURES_NAME})"
    )
    for failure in failures[:_LISTED]:
        table.add_row(*failure)
    if len(failures) > _LISTED:
        table.add_row("...", f"and {len(failures) - _LISTED} more")
    console.print(table)


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
    )
