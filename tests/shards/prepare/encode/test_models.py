from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers.utils import logging as transformers_logging

from shards.errors import InputError
from shards.prepare.encode.models import fingerprint, load_text_encoder, load_tokenizer, load_vae
from tests.support.models import tiny_model


def test_fingerprint_follows_the_weights_and_not_the_dtype_they_were_loaded_in() -> None:
    vae = load_vae(tiny_model(), torch.float32)
    assert fingerprint(vae) == fingerprint(load_vae(tiny_model(), torch.bfloat16))
    before = fingerprint(vae)
    vae.latents_std[0] *= 1.1
    assert fingerprint(vae) != before != fingerprint(load_text_encoder(tiny_model(), torch.float32))


def test_models_are_frozen_and_in_the_dtype_asked_for() -> None:
    vae, encoder = load_vae(tiny_model(), torch.bfloat16), load_text_encoder(tiny_model(), torch.bfloat16)
    assert vae.dtype == encoder.dtype == torch.bfloat16
    for module in (vae, encoder):
        assert not module.training
        assert not any(p.requires_grad for p in module.parameters())


def test_loading_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    transformers_logging.enable_progress_bar()
    load_text_encoder(tiny_model(), torch.float32)
    load_vae(tiny_model(), torch.float32)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("part", "load"),
    [
        ("vae", lambda folder: load_vae(folder, torch.float32)),
        ("text_encoder", lambda folder: load_text_encoder(folder, torch.float32)),
        ("tokenizer", load_tokenizer),
    ],
)
def test_damaged_or_missing_part_is_named(tmp_path: Path, part: str, load) -> None:
    shutil.copytree(tiny_model(), tmp_path / "model")
    for file in (tmp_path / "model" / part).iterdir():
        file.unlink()
    with pytest.raises(InputError, match=f"{part}"):
        load(tmp_path / "model")
    (tmp_path / "model" / part).rmdir()
    with pytest.raises(InputError, match=f"{part}/"):
        load(tmp_path / "model")
