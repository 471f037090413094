from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import LTXPipeline

from dist_trainer.tiny import CHANNELS, TEXT_WIDTH, write_tiny_model
from tests.support.clips import PALETTE, ramp
from tests.support.models import tiny_model


@pytest.fixture(scope="module")
def pipeline() -> LTXPipeline:
    pipeline = LTXPipeline.from_pretrained(tiny_model())
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_diffusers_opens_the_folder_and_generates(pipeline: LTXPipeline) -> None:
    generator = torch.Generator().manual_seed(0)
    run = pipeline(
        "a red square moves left",
        height=64,
        width=96,
        num_frames=9,
        num_inference_steps=2,
        generator=generator,
        output_type="np",
    )
    assert run.frames.shape == (1, 9, 64, 96, 3)
    assert 0.01 < run.frames.std() < 0.5


def test_same_seed_same_bytes_and_other_seed_other_weights(tmp_path: Path) -> None:
    again, other = write_tiny_model(tmp_path / "again", 0), write_tiny_model(tmp_path / "other", 1)
    assert files(again) == files(tiny_model())
    assert sum(map(len, files(again).values())) < 5 << 20
    for part in ("transformer", "vae", "text_encoder"):
        weights = next((other / part).glob("*.safetensors"))
        assert weights.read_bytes() != (again / part / weights.name).read_bytes()


def test_writing_a_model_leaves_the_global_random_state_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    write_tiny_model(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_every_size_differs_from_the_published_model(pipeline: LTXPipeline) -> None:
    vae, transformer = pipeline.vae, pipeline.transformer
    assert (vae.temporal_compression_ratio, vae.spatial_compression_ratio) == (4, 16)
    assert transformer.config.in_channels == vae.config.latent_channels == CHANNELS != 128
    assert transformer.config.caption_channels == pipeline.text_encoder.config.d_model == TEXT_WIDTH != 4096
    assert (vae.latents_mean.abs() > 0.001).any()
    assert (vae.latents_std < 0.9).all()


def test_latents_have_unit_scale_and_follow_the_picture(pipeline: LTXPipeline) -> None:
    vae = pipeline.vae
    clips = torch.stack(
        [torch.from_numpy(ramp(9, 96, 64, colour)).permute(3, 0, 1, 2) / 127.5 - 1 for colour in PALETTE]
    )
    with torch.no_grad():
        posterior = vae.encode(clips).latent_dist
    assert posterior.mean.shape == (len(PALETTE), CHANNELS, 3, 4, 6)
    shape = (1, -1, 1, 1, 1)
    latents = (posterior.mean - vae.latents_mean.view(shape)) / vae.latents_std.view(shape)
    assert 0.3 < latents.std() < 3
    assert latents.mean().abs() < 1
    noise = (posterior.std / vae.latents_std.view(shape)).mean()
    assert noise < 0.3 * (latents - latents.mean(dim=0)).std()


def test_vae_is_causal_in_time(pipeline: LTXPipeline) -> None:
    clip = torch.rand(1, 3, 9, 32, 32) * 2 - 1
    with torch.no_grad():
        whole, first = (pipeline.vae.encode(c).latent_dist.mean for c in (clip, clip[:, :, :1]))
    torch.testing.assert_close(whole[:, :, :1], first)


def test_tokenizer_knows_its_words_ends_in_eos_and_pads(pipeline: LTXPipeline) -> None:
    tokenizer = pipeline.tokenizer
    tokens = tokenizer("a red square, zebra!", padding="max_length", max_length=20)
    pieces = tokenizer.convert_ids_to_tokens(tokens.input_ids)
    assert pieces[:3] == ["▁a", "▁red", "▁square"]
    assert pieces[sum(tokens.attention_mask) - 1] == "</s>"
    assert pieces[-1] == "<pad>"
    assert "<unk>" not in pieces


def test_prompts_have_different_embeddings_of_unit_scale(pipeline: LTXPipeline) -> None:
    embeds, mask = pipeline._get_t5_prompt_embeds(["a red square", "a blue circle"], max_sequence_length=16)
    assert 0.5 < embeds.std() < 2
    assert (embeds[0] - embeds[1])[mask[0]].std() > 0.1
