from __future__ import annotations

import pytest
import torch
from diffusers import LTXPipeline

from shards.prepare.encode.models import load_text_encoder, load_tokenizer
from shards.prepare.encode.text import encode_prompt, prompt_of
from tests.support.models import tiny_model

PROMPTS = ("", "a red square moves left", "A zebra, 3 rings & more!", "red " * 100)


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return getattr(torch, request.param)


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("length", [16, 256])
def test_embedding_is_that_of_the_pipeline_cut_to_its_real_tokens(
    dtype: torch.dtype, prompt: str, length: int
) -> None:
    pipeline = LTXPipeline.from_pretrained(tiny_model(), torch_dtype=dtype, transformer=None, vae=None)
    with torch.no_grad():
        padded, mask = pipeline._get_t5_prompt_embeds([prompt], max_sequence_length=length)
    tokenizer = load_tokenizer(tiny_model())
    embeds, cut = encode_prompt(tokenizer, load_text_encoder(tiny_model(), dtype), prompt, length)
    assert embeds.dtype == torch.bfloat16
    assert torch.equal(embeds, padded[0, mask[0]].to(torch.bfloat16))
    assert len(embeds) == min(length, len(tokenizer(prompt).input_ids))
    assert cut == (len(tokenizer(prompt).input_ids) > length)


def test_a_masked_call_would_give_other_numbers() -> None:
    """Keeps the comparison above honest: the tiny encoder does tell a masked call from an unmasked one."""
    tokenizer, encoder = load_tokenizer(tiny_model()), load_text_encoder(tiny_model(), torch.float32)
    tokens = tokenizer(PROMPTS[1], padding="max_length", max_length=64, return_tensors="pt")
    with torch.no_grad():
        masked = encoder(tokens.input_ids, tokens.attention_mask)[0][0]
    embeds, _ = encode_prompt(tokenizer, encoder, PROMPTS[1], 64)
    assert (masked[: len(embeds)] - embeds.float()).abs().max() > 0.1


@pytest.mark.parametrize(
    ("token", "prompt"),
    [(None, "a cat"), ("", "a cat"), ("  ", "a cat"), ("MYTOK", "MYTOK a cat"), (" MYTOK ", "MYTOK a cat")],
)
def test_trigger_word_comes_first(token: str | None, prompt: str) -> None:
    assert prompt_of("a cat", token) == prompt


def test_trigger_word_stands_alone_where_there_is_no_caption() -> None:
    assert prompt_of("", " MYTOK ") == "MYTOK"
    assert prompt_of("", None) == ""
