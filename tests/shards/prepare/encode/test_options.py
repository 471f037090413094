from __future__ import annotations

from dataclasses import fields, replace

import pytest

from shards.errors import InputError
from shards.prepare.encode.options import EncodeOptions, check, identity

# What says where the table's columns are (its content counts), or by what means the same bytes are made.
WITHOUT_EFFECT = {
    "caption_column", "media_column", "reference_column", "device", "dtype", "swap_models", "decode_threads",
    "patience_s",
    "retry_failed",
}  # fmt: skip


def test_every_option_is_part_of_the_identity_or_known_to_change_no_byte() -> None:
    names = {field.name for field in fields(EncodeOptions)}
    assert identity(EncodeOptions()).keys() == names - WITHOUT_EFFECT


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reshape_mode": "left"}, "--reshape-mode 'left' is not known: use center or random"),
        ({"short_videos": "loop"}, "--short-videos 'loop' is not known: use leave or picture"),
        ({"dtype": "fp32"}, "--dtype 'fp32' is not known: use auto, bfloat16, float16 or float32"),
        ({"windows": 0}, "--windows 0: must be at least 1"),
        ({"rows_per_shard": 0}, "--rows-per-shard 0: must be at least 1"),
        ({"vae_batch": -1}, "--vae-batch -1: must be at least 1"),
        ({"max_text_tokens": 0}, "max_text_tokens 0: must be at least 1"),
        ({"reference_downscale": 0}, "--reference-downscale 0: must be at least 1"),
        ({"decode_threads": 0}, "--decode-threads 0: must be at least 1"),
        ({"patience_s": 0.6}, "--patience 0.01: must be at least a second, 0.017"),
        (
            {"swap_models": True, "text_encoder_8bit": True},
            "--swap-models cannot move the text encoder of --text-encoder-8bit off the GPU: use one of both",
        ),
    ],
)
def test_senseless_options_are_refused_by_name(changes: dict, message: str) -> None:
    check(EncodeOptions(windows=None))
    with pytest.raises(InputError) as error:
        check(replace(EncodeOptions(), **changes))
    assert str(error.value) == message
