"""Vision-language models small enough for tests: real classes of transformers, random weights, own tokenizers."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Sequence, Split, WhitespaceSplit
from transformers import (
    CLIPImageProcessorPil,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessorPil,
    Idefics3Processor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
)

KINDS = ("qwen2_5_vl", "llava", "idefics3")

_WORDS = "a an the and of in on with at red green blue cat dog bird car moves runs sleeps slowly . ,"
_TEXT: dict[str, Any] = {
    "bos_token_id": 2,
    "eos_token_id": 3,
    "pad_token_id": 0,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_CHAT = (
    "{% for message in messages %}<start>{{ message.role }} {% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% elif part.type == 'video' %}VIDEO{% else %}{{ part.text }}{% endif %}"
    "{% endfor %}<end>{% endfor %}{% if add_generation_prompt %}<start>assistant {% endif %}"
)
# Those of the published models, which the processors look for by name.
_SPECIAL = {
    "qwen2_5_vl": ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"),
    "llava": ("<image>",),
    "idefics3": ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>"),
}


@functools.cache
def tiny_vlm(kind: str = "qwen2_5_vl") -> Path:
    """Folder of a tiny chat model that sees, one of KINDS. Read-only: a test that changes it copies it first.

    Its answers are words that depend on the pictures, at least five of them.
    """
    folder = Path(tempfile.mkdtemp(prefix=f"tiny_{kind}_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    tokenizer = _tokenizer(kind)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = {"qwen2_5_vl": _qwen, "llava": _llava, "idefics3": _idefics}[kind](folder, tokenizer)
    # Larger weights than they begin with: otherwise every picture gets the same answer.
    with torch.no_grad():
        for weights in model.parameters():
            if weights.ndim > 1:
                weights.mul_(6.0)
    words = set(map(tokenizer.convert_tokens_to_ids, _WORDS.split()))
    config = model.generation_config
    config.eos_token_id, config.pad_token_id = (tokenizer.eos_token_id, tokenizer.pad_token_id)
    config.suppress_tokens = [
        token for token in range(len(tokenizer)) if token not in {*words, config.eos_token_id}
    ]
    config.min_new_tokens = 5
    config.repetition_penalty = 4.0
    model.save_pretrained(folder)
    return folder


def _tokenizer(kind: str) -> PreTrainedTokenizerFast:
    special = ["<pad>", "<unknown>", "<start>", "<end>", *_SPECIAL[kind]]
    plain = Tokenizer(
        WordLevel({word: i for i, word in enumerate([*special, *_WORDS.split()])}, unk_token="<unknown>")
    )
    plain.pre_tokenizer = Sequence([WhitespaceSplit(), Split(".", "isolated")])
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        unk_token="<unknown>",
        bos_token="<start>",
        eos_token="<end>",
        additional_special_tokens=list(_SPECIAL[kind]),
    )


def _chat(image: str, video: str = "") -> str:
    return _CHAT.replace("IMAGE", image).replace("VIDEO", video)


def _qwen(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Qwen2_5_VLForConditionalGeneration:
    start, end, image, video = _SPECIAL["qwen2_5_vl"]
    # Part by part: the whole processor cannot be made without torchvision, which its video part needs.
    tokenizer.save_pretrained(folder)
    Qwen2VLImageProcessorPil(min_pixels=28 * 28, max_pixels=2 * 56 * 28).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(_chat(start + image + end, start + video + end))
    index = tokenizer.convert_tokens_to_ids
    config = Qwen2_5_VLConfig(
        text_config={
            **_TEXT,
            "vocab_size": len(tokenizer),
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": _TEXT["hidden_size"],
            "fullatt_block_indexes": [1],
        },
        image_token_id=index(image),
        video_token_id=index(video),
        vision_start_token_id=index(start),
        vision_end_token_id=index(end),
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def _llava(folder: Path, tokenizer: PreTrainedTokenizerFast) -> LlavaForConditionalGeneration:
    pictures = CLIPImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, do_center_crop=True
    )
    LlavaProcessor(
        pictures,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=_chat("<image>"),
    ).save_pretrained(folder)
    config = LlavaConfig(
        text_config={**_TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        image_seq_length=4,
    )
    return LlavaForConditionalGeneration(config)


def _idefics(folder: Path, tokenizer: PreTrainedTokenizerFast) -> Idefics3ForConditionalGeneration:
    pictures = Idefics3ImageProcessorPil(
        size={"longest_edge": 28}, max_image_size={"longest_edge": 28}, do_image_splitting=False
    )
    Idefics3Processor(pictures, tokenizer, image_seq_len=1, chat_template=_chat("<image>")).save_pretrained(
        folder
    )
    config = Idefics3Config(
        text_config={**_TEXT, "model_type": "llama", "vocab_size": len(tokenizer)},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 28,
            "patch_size": 14,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        scale_factor=2,
    )
    return Idefics3ForConditionalGeneration(config)
