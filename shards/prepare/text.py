"""Captions to text embeddings of their real length."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import T5EncoderModel, T5TokenizerFast


def prompt_of(caption: str, id_token: str | None) -> str:
    """The text that is embedded: the caption, after the trigger word where there is one."""
    return f"{id_token.strip()} {caption}" if id_token and id_token.strip() else caption


@torch.inference_mode()
def encode_prompt(
    tokenizer: T5TokenizerFast, encoder: T5EncoderModel, prompt: str, max_tokens: int
) -> tuple[Tensor, bool]:
    """Embedding [T,D] bfloat16 on the CPU of one prompt, real tokens only, and whether the prompt was cut.

    The encoder sees the prompt padded to `max_tokens` and no mask, as in `LTXPipeline` and in Lightricks'
    trainer: the published transformers were trained on that, and a masked call gives other numbers for the
    same tokens.
    """
    tokens = tokenizer(
        prompt, padding="max_length", max_length=max_tokens, truncation=True, return_tensors="pt"
    )
    embeds = encoder(tokens.input_ids.to(encoder.device))[0][0]
    real = tokens.attention_mask[0].bool()
    cut = bool(real.all()) and len(tokenizer(prompt, verbose=False).input_ids) > max_tokens
    return embeds.cpu()[real].to(torch.bfloat16), cut


class PromptFile:
    """Embeddings of many prompts, in an unnamed temporary file: those of a million captions fit no memory."""

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `close`)
        self._places: dict[str, tuple[int, int, int]] = {}
        self._end = 0
        self.cut = 0

    def add(self, tokenizer: T5TokenizerFast, encoder: T5EncoderModel, prompt: str, max_tokens: int) -> None:
        """Encode a prompt, unless it is there already; `cut` counts those longer than `max_tokens`."""
        if prompt in self._places:
            return
        embeds, cut = encode_prompt(tokenizer, encoder, prompt, max_tokens)
        data = embeds.contiguous().view(torch.uint8).numpy().tobytes()
        self._file.seek(self._end)
        self._file.write(data)
        self._places[prompt] = (self._end, *embeds.shape)
        self._end += len(data)
        self.cut += cut

    def __getitem__(self, prompt: str) -> Tensor:
        """Embedding [T,D] bfloat16 of a prompt that was added."""
        offset, tokens, width = self._places[prompt]
        self._file.seek(offset)
        data = bytearray(self._file.read(tokens * width * torch.bfloat16.itemsize))
        return torch.frombuffer(data, dtype=torch.bfloat16).view(tokens, width)

    def close(self) -> None:
        """Give the temporary file back."""
        self._file.close()
