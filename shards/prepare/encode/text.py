"""Captions to text embeddings of their real length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import T5EncoderModel, T5TokenizerFast


def prompt_of(caption: str, id_token: str | None) -> str:
    """The text that is embedded: the caption, after the trigger word where there is one."""
    return f"{id_token.strip()} {caption}".strip() if id_token and id_token.strip() else caption


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
