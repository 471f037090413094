from __future__ import annotations

import pytest
import torch
from diffusers import LTXPipeline

from dist_trainer.tiny.domain import scenes
from dist_trainer.tiny.probe import share_right
from dist_trainer.tiny.sample import captions, generate
from dist_trainer.tiny.train_vae import psnr
from dist_trainer.tiny.trained import WEIGHTS
from shards.prepare.media.shapes import NEW_COLOURS, NEW_SHAPES, draw, edges

UNSEEN = 123456789  # a seed that no training used


@pytest.fixture(scope="module")
def pipeline() -> LTXPipeline:
    return LTXPipeline.from_pretrained(WEIGHTS, torch_dtype=torch.float32)


def test_the_folder_is_small() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 10 << 20


def test_the_vae_reconstructs_clips_it_has_not_seen(pipeline: LTXPipeline) -> None:
    clips = [draw(scene) for scene in scenes(12, UNSEEN, pictures=0)]
    new = [draw(scene) for scene in scenes(4, UNSEEN, tuple(NEW_COLOURS), NEW_SHAPES, pictures=0)]
    assert psnr(pipeline.vae, clips) >= 30
    assert psnr(pipeline.vae, new) >= 28
    assert psnr(pipeline.vae, [edges(clip) for clip in clips[:4]]) >= 15


def test_generated_clips_show_what_their_captions_say(pipeline: LTXPipeline) -> None:
    prompts = captions()
    clips = generate(pipeline, prompts)
    found = share_right(clips, prompts)
    assert found["colour"] >= 0.9, found
    assert found["move"] >= 0.9, found
    assert found["shape"] >= 0.9, found
    # Against the captions of other clips: the figures are not the probe's kindness.
    assert share_right(clips, prompts[5:] + prompts[:5])["all"] <= 0.1
