"""How to encode, as plain values, and the check that they make sense."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from shards.errors import InputError
from shards.prepare.tables.table import REFERENCE_COLUMN

DEFAULT_ROWS = 64
SHORT_VIDEOS = ("leave", "picture")
RESHAPE_MODES = ("center", "random")
DTYPES = ("auto", "bfloat16", "float16", "float32")


@dataclass(frozen=True)
class EncodeOptions:
    """How to encode; what is stored is bfloat16 whatever `dtype` is.

    `max_text_tokens` is the length that captions are padded to for the encoder, and cut at: 256 as in
    Lightricks' trainer, whatever the tokenizer's own `model_max_length` says (diffusers converted it with
    128). The embedding of every token depends on it.
    """

    caption_column: str = "caption"
    media_column: str = "media_path"
    reference_column: str | None = REFERENCE_COLUMN  # or several, with commas; None leaves references out
    id_token: str | None = None  # put before every caption
    reshape_mode: str = "center"  # or random: where a clip is cut to its bucket's shape
    windows: int | None = 1  # most samples of a clip; None: as many as fit
    short_videos: str = "leave"  # or picture: what to do with videos shorter than every video bucket
    reference_downscale: int = 1  # sides of references are this many times smaller
    seed: int = 42
    rows_per_shard: int = DEFAULT_ROWS  # of the table; the unit of work too
    device: str = "auto"  # cuda where there is one
    # Of the networks: bfloat16 on a GPU, float32 on a CPU (where bfloat16 is ten times slower).
    dtype: str = "auto"
    vae_tiling: bool = False
    vae_batch: int = 1  # clips of one size that the VAE takes at once
    swap_models: bool = False  # keep one of text encoder and VAE in the GPU's memory at a time
    text_encoder_8bit: bool = False
    max_text_tokens: int = 256
    decode_threads: int = 4  # clips that are decoded at a time
    patience_s: float = 1800.0  # for the next frames of a clip, until its process is given up
    retry_failed: bool = False  # do the shards again that rows are missing from


def check(options: EncodeOptions) -> None:
    """Raise `InputError` naming the first option that makes no sense, as the command has it."""
    _one_of("reshape_mode", options.reshape_mode, RESHAPE_MODES)
    _one_of("short_videos", options.short_videos, SHORT_VIDEOS)
    _one_of("dtype", options.dtype, DTYPES)
    for name in ("windows", "reference_downscale", "rows_per_shard", "vae_batch", "decode_threads"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"{_flag(name)} {value}: must be at least 1")
    if options.max_text_tokens < 1:
        raise InputError(f"max_text_tokens {options.max_text_tokens}: must be at least 1")
    if not options.patience_s >= 1:
        raise InputError(f"--patience {options.patience_s / 60:g}: must be at least a second, 0.017")
    if options.swap_models and options.text_encoder_8bit:
        raise InputError(
            "--swap-models cannot move the text encoder of --text-encoder-8bit off the GPU: use one of both"
        )


def identity(options: EncodeOptions) -> dict[str, Any]:
    """The options that change the bytes of a dataset, beside its table; `dtype` is left to the caller."""
    names = (
        "id_token",
        "reshape_mode",
        "windows",
        "short_videos",
        "reference_downscale",
        "seed",
        "rows_per_shard",
        "vae_tiling",
        "vae_batch",
        "text_encoder_8bit",
        "max_text_tokens",
    )
    return {name: getattr(options, name) for name in names}


def _one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise InputError(f"{_flag(name)} {value!r} is not known: use {', '.join(known[:-1])} or {known[-1]}")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"
