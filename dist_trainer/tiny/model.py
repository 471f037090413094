"""A whole LTX-Video pipeline small enough for tests: the real classes, random weights, its own tokenizer.

Every size that code might be tempted to hard-code differs from the published models: compression 4 in time
and 16 in space (published: 8 and 32), 8 latent channels (128), 48-wide text (4096), latent statistics that
are not 0 and 1. What works on this folder therefore reads its geometry from the configs.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from transformers import T5Config, T5EncoderModel, T5TokenizerFast

if TYPE_CHECKING:
    from torch import Tensor

CHANNELS = 8
TEXT_WIDTH = 48
TEXT_TOKENS = 64

WORDS = (
    "a an the and of in on with at from to into over is two three one no not worst quality blurry video "
    "image scene red green blue yellow white black orange purple cyan magenta square circle triangle "
    "ring bar shape background moves left right up down still across turns grows shrinks bounces slowly "
    "fast large small bright dark person dog cat car bird rides runs walks looks rabbit bicycle street "
    "grass tree forest camera edge edges"
)


def tiny_transformer(seed: int = 0) -> LTXVideoTransformer3DModel:
    """Two blocks, 4 heads of 16 channels, `CHANNELS` in and out, text of width `TEXT_WIDTH`; float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LTXVideoTransformer3DModel(
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            num_attention_heads=4,
            attention_head_dim=16,
            cross_attention_dim=64,
            num_layers=2,
            caption_channels=TEXT_WIDTH,
        ).eval()


def tiny_vae(seed: int = 0) -> AutoencoderKLLTXVideo:
    """Causal video autoencoder, frames / 4 and sizes / 16, `CHANNELS` latent channels; float32.

    The random encoder is given a narrow posterior and `latents_mean`/`latents_std` measured on smooth noise,
    so that normalised latents have about zero mean and unit variance and depend on the picture, as trained
    ones do.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        vae = AutoencoderKLLTXVideo(
            latent_channels=CHANNELS,
            block_out_channels=(16, 24),
            down_block_types=("LTXVideoDownBlock3D",) * 2,
            decoder_block_out_channels=(16, 24),
            layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            spatio_temporal_scaling=(True, True),
            decoder_spatio_temporal_scaling=(True, True),
            decoder_inject_noise=(False, False, False),
            downsample_type=("conv", "conv"),
            upsample_residual=(False, False),
            upsample_factor=(1, 1),
            timestep_conditioning=False,
            patch_size=4,
            patch_size_t=1,
            encoder_causal=True,
        ).eval()
        probe = F.interpolate(torch.randn(4, 3, 4, 6, 6), size=(9, 96, 96), mode="trilinear").clamp(-1, 1)
    with torch.no_grad():
        # The encoder's last channel is the log variance, shared by all latent channels.
        head = vae.encoder.conv_out.conv
        head.weight[-1].zero_()
        head.bias[-1] = -8.0
        means = vae.encode(probe).latent_dist.mean.transpose(0, 1).flatten(1)
        # Rounded, so that the last bits of this machine's convolutions do not enter the weights.
        vae.latents_mean.copy_(_round(means.mean(dim=1)))
        vae.latents_std.copy_(_round(means.std(dim=1)).clamp_min(0.01))
    return vae


def _round(values: Tensor) -> Tensor:
    return (values * 100).round() / 100


def tiny_text_encoder(vocabulary: int, seed: int = 0) -> T5EncoderModel:
    """Two T5 layers of width `TEXT_WIDTH`; outputs have about unit variance; float32."""
    config = T5Config(
        vocab_size=vocabulary,
        d_model=TEXT_WIDTH,
        d_kv=12,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        feed_forward_proj="gated-gelu",
        is_encoder_decoder=False,
        use_cache=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 2)
        return T5EncoderModel(config).eval()


def tiny_tokenizer(words: str = WORDS) -> T5TokenizerFast:
    """Unigram tokenizer of `words` and all printable ASCII; ends in `</s>`, pads with `<pad>`."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -4.0)]
    pieces += [(f"▁{word}", -5.0) for word in words.split()]
    pieces += [(letter, -8.0) for letter in string.ascii_letters + string.digits + string.punctuation]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=TEXT_TOKENS)


def tiny_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """The published models' settings: noise levels shift with the number of tokens, as in training."""
    return FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True,
        base_shift=0.95,
        max_shift=2.05,
        base_image_seq_len=1024,
        max_image_seq_len=4096,
        shift_terminal=0.1,
    )


def write_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Write a pipeline folder that `LTXPipeline.from_pretrained(folder)` opens, and return the folder.

    The same bytes for the same seed. Takes about a second and 3 MB.
    """
    tokenizer = tiny_tokenizer()
    pipeline = LTXPipeline(
        scheduler=tiny_scheduler(),
        vae=tiny_vae(seed),
        text_encoder=tiny_text_encoder(len(tokenizer), seed),
        tokenizer=tokenizer,
        transformer=tiny_transformer(seed),
    )
    folder.mkdir(parents=True, exist_ok=True)
    pipeline.save_pretrained(folder)
    return folder
