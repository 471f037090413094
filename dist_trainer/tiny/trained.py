"""The tiny model that was trained on moving shapes: where it lies, and its networks before training."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKLLTXVideo, LTXVideoTransformer3DModel

from dist_trainer.tiny.model import TEXT_WIDTH
from dist_trainer.tiny.model import WORDS as _WORDS

WEIGHTS = Path(__file__).with_name("weights")
WORDS = f"{_WORDS} star"

_CHANNELS = 24
_WIDTH = 96


def new_vae(seed: int) -> AutoencoderKLLTXVideo:
    """Video autoencoder of random weights: frames / 4, sizes / 16, residual halving and doubling; float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        vae = AutoencoderKLLTXVideo(
            latent_channels=_CHANNELS,
            block_out_channels=(24, 96, 192),
            down_block_types=("LTXVideo095DownBlock3D",) * 2,
            decoder_block_out_channels=(32, 64),
            layers_per_block=(1, 1, 0),
            decoder_layers_per_block=(1, 1, 1),
            spatio_temporal_scaling=(True, True),
            decoder_spatio_temporal_scaling=(True, True),
            decoder_inject_noise=(False, False, False),
            downsample_type=("spatiotemporal", "spatiotemporal"),
            upsample_residual=(True, True),
            upsample_factor=(1, 1),
            timestep_conditioning=False,
            patch_size=4,
            patch_size_t=1,
            encoder_causal=True,
            decoder_causal=False,
        )
    # The encoder's last channel is the log variance: with as much noise as signal at first, nothing is learned.
    torch.nn.init.constant_(vae.encoder.conv_out.conv.bias[-1:], -6.0)
    return vae


def new_transformer(seed: int) -> LTXVideoTransformer3DModel:
    """Five blocks, 4 heads of 24 channels, of random weights but for an output of zero; float32."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LTXVideoTransformer3DModel(
            in_channels=_CHANNELS,
            out_channels=_CHANNELS,
            num_attention_heads=4,
            attention_head_dim=_WIDTH // 4,
            cross_attention_dim=_WIDTH,
            num_layers=5,
            caption_channels=TEXT_WIDTH,
        )
    torch.nn.init.zeros_(model.proj_out.weight)
    torch.nn.init.zeros_(model.proj_out.bias)
    return model
