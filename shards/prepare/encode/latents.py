"""Decoded samples through the VAE, several of one size at once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from shards.errors import InputError
from shards.formats.header import reference_name
from shards.geometry import Bucket
from shards.hashing import mix, sample_id
from shards.prepare.encode.cut import REFERENCE_NOISE, TARGET_NOISE, Decoded
from shards.prepare.encode.vae import encode_clips

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTXVideo
    from torch import Tensor


class _Part(NamedTuple):
    sample: int
    name: str
    frames: np.ndarray
    noise: torch.Generator


def batches(samples: Iterable[Decoded], most: int) -> Iterator[list[Decoded]]:
    """Samples of one bucket together, `most` at a time, in the order in which groups are full; then the rest."""
    waiting: dict[Bucket, list[Decoded]] = {}
    for sample in samples:
        bucket = sample.clip.bucket
        group = waiting.setdefault(bucket, [])
        group.append(sample)
        if len(group) == most:
            yield waiting.pop(bucket)
    yield from waiting.values()


def encode_batch(
    vae: AutoencoderKLLTXVideo, batch: Sequence[Decoded], seed: int, most: int
) -> list[dict[str, Tensor]]:
    """`latents` and `reference_latents`, `reference_latents_2`, ... of each sample, bfloat16 [C,F,H,W].

    At most `most` clips of one size go through the VAE at once. Noise is drawn from (seed, sample id). Raises
    InputError where the GPU's memory is too small.
    """
    by_size: defaultdict[tuple[int, ...], list[_Part]] = defaultdict(list)
    for number, sample in enumerate(batch):
        for part in _parts(number, sample, seed):
            by_size[part.frames.shape].append(part)
    tensors: list[dict[str, Tensor]] = [{} for _ in batch]
    for parts in by_size.values():
        for begin in range(0, len(parts), most):
            together = parts[begin : begin + most]
            for part, latents in zip(together, _encode(vae, together), strict=True):
                tensors[part.sample][part.name] = latents
    return tensors


def _parts(number: int, sample: Decoded, seed: int) -> Iterator[_Part]:
    identity = sample_id(sample.window.key)

    def noise(*purpose: int) -> torch.Generator:
        return torch.Generator().manual_seed(int(mix(seed, identity, *purpose)))

    yield _Part(number, "latents", sample.target, noise(TARGET_NOISE))
    for index, frames in enumerate(sample.references):
        purpose = (REFERENCE_NOISE, index) if index else (REFERENCE_NOISE,)
        yield _Part(number, reference_name(index), frames, noise(*purpose))


def _encode(vae: AutoencoderKLLTXVideo, parts: Sequence[_Part]) -> list[Tensor]:
    try:
        return encode_clips(vae, [part.frames for part in parts], [part.noise for part in parts])
    except torch.OutOfMemoryError as error:
        frames, height, width = parts[0].frames.shape[:3]
        raise InputError(
            f"{len(parts)} clip(s) of {width}x{height}x{frames} do not fit the memory of {vae.device}: run the same "
            "command with --swap-models, or on a GPU with more memory, which keeps what is done; or write to "
            "another folder with --vae-batch 1, --text-encoder-8bit or --vae-tiling, which give other bytes"
        ) from error
