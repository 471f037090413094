"""The frozen networks of one worker, and the device they run on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch

from shards.dataset.info import DatasetInfo, Source, pack_embeds
from shards.errors import InputError
from shards.geometry import Scale
from shards.prepare.encode.models import (
    DTYPES,
    fingerprint,
    load_8bit_text_encoder,
    load_text_encoder,
    load_tokenizer,
)
from shards.prepare.encode.options import EncodeOptions
from shards.prepare.encode.text import encode_prompt
from shards.prepare.encode.vae import vae_scale

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTXVideo
    from torch import Tensor, nn
    from transformers import T5EncoderModel, T5TokenizerFast


DEVICES = ("cpu", "cuda")


class Text(NamedTuple):
    """An embedded caption: bfloat16 [T,D] on the CPU, and whether the caption was cut at the longest length."""

    embeds: Tensor
    cut: bool


@dataclass(frozen=True)
class Encoders:
    """VAE and text encoder of a model, with the fingerprints of their weights."""

    model: str
    device: torch.device
    vae: AutoencoderKLLTXVideo
    tokenizer: T5TokenizerFast
    text_encoder: T5EncoderModel
    vae_fingerprint: str
    text_fingerprint: str
    swap: bool
    max_text_tokens: int

    @property
    def scale(self) -> Scale:
        """Compression of the VAE."""
        return vae_scale(self.vae)

    def embed(self, prompts: Iterable[str]) -> dict[str, Text]:
        """Each different prompt, embedded."""
        self._make_ready(self.text_encoder, self.vae)
        return {
            prompt: Text(*encode_prompt(self.tokenizer, self.text_encoder, prompt, self.max_text_tokens))
            for prompt in dict.fromkeys(prompts)
        }

    def ready_vae(self) -> AutoencoderKLLTXVideo:
        """The VAE, on the device."""
        self._make_ready(self.vae, self.text_encoder)
        return self.vae

    def describe(self) -> DatasetInfo:
        """What a dataset made with these says of itself."""
        null = self.embed([""])[""].embeds
        return DatasetInfo(
            channels=self.vae.config.latent_channels,
            text_width=null.shape[1],
            scale=self.scale,
            vae=Source(self.model, self.vae_fingerprint, type(self.vae).__name__),
            text_encoder=Source(self.model, self.text_fingerprint, type(self.text_encoder).__name__),
            null_prompt_embeds=pack_embeds(null),
        )

    def _make_ready(self, module: nn.Module, other: nn.Module) -> None:
        if self.swap and other.device != torch.device("cpu"):
            other.to("cpu")
            torch.cuda.empty_cache()
        if module.device != self.device:
            module.to(self.device)


def load_encoders(
    model: str | Path, vae: AutoencoderKLLTXVideo, device: torch.device, options: EncodeOptions
) -> Encoders:
    """Load a model's text encoder and put it beside its `vae`, which fixes their dtype.

    Raises InputError for a model that lacks a part, or 8 bits without the package for them.
    """
    if options.vae_tiling:
        vae.enable_tiling()
    tokenizer = load_tokenizer(model)
    encoder = load_text_encoder(model, vae.dtype)
    # Of the plain weights also where 8-bit ones are used: that is what training compares.
    text_fingerprint = fingerprint(encoder)
    if options.text_encoder_8bit:
        del encoder
        encoder = load_8bit_text_encoder(model, vae.dtype, device)
    return Encoders(
        str(model),
        device,
        vae,
        tokenizer,
        encoder,
        fingerprint(vae),
        text_fingerprint,
        options.swap_models,
        options.max_text_tokens,
    )


def choose_device(name: str, local: int) -> torch.device:
    """The device `name`; for auto and cuda the GPU number `local` of this host, counted round.

    Raises InputError when it cannot be used.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and torch.cuda.device_count():
        name = f"cuda:{local % torch.cuda.device_count()}"
    if name.partition(":")[0] not in DEVICES:
        raise InputError(f"--device {name!r} is not known: use auto, {' or '.join(DEVICES)}")
    try:
        # Asking for memory is the only test that covers every kind of device.
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        first = str(error).splitlines()[0]
        raise InputError(f"--device {name!r} cannot be used here: {first}") from error


@contextmanager
def computing_alike(device: torch.device) -> Iterator[None]:
    """Compute on a CPU in one thread: the last bits of sums depend on their number, which launchers set."""
    if device.type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def hardware(device: torch.device) -> str:
    """What the last bits of results depend on: the kind of GPU, or what the CPU can do."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} {torch.backends.cpu.get_cpu_capability()}"


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The networks' dtype `name`; auto is float32 on a CPU, else bfloat16. Raises InputError for another name."""
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    if name not in DTYPES:
        raise InputError(f"--dtype {name!r} is not known: use auto, {', '.join(DTYPES)}")
    return DTYPES[name]
