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
        ({"reshape_mode": "left"}, "reshape_mode 'left' is not known: use center or random"),
        ({"short_videos": "loop"}, "short_videos 'loop' is not known: use leave or picture"),
        ({"windows": 0}, "windows 0 must be at least 1"),
        ({"rows_per_shard": 0}, "rows_per_shard 0 must be at least 1"),
        ({"vae_batch": -1}, "vae_batch -1 must be at least 1"),
        ({"max_text_tokens": 0}, "max_text_tokens 0 must be at least 1"),
        ({"reference_downscale": 0}, "reference_downscale 0 must be at least 1"),
        ({"decode_threads": 0}, "decode_threads 0 must be at least 1"),
        ({"patience_s": 0.5}, "patience_s 0.5 must be at least 1"),
        (
            {"swap_models": True, "text_encoder_8bit": True},
            "swap_models cannot move an 8-bit text encoder off the GPU: use one of both",
        ),
    ],
)
def test_senseless_options_are_refused_by_name(changes: dict, message: str) -> None:
    check(EncodeOptions(windows=None))
    with pytest.raises(InputError) as error:
        check(replace(EncodeOptions(), **changes))
    assert str(error.value) == message
