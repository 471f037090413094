"""Folders as LTX-Video-Trainer leaves them, by the calls of its own scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def pack_latents(latents: Tensor) -> Tensor:
    """Latents [B,C,F,H,W] to the tokens [B,L,C] that the predecessor saves (its `ltxv_utils.pack_latents`)."""
    b, _, f, h, w = latents.shape
    latents = latents.reshape(b, -1, f, 1, h, 1, w, 1)
    return latents.permute(0, 2, 4, 6, 1, 3, 5, 7).flatten(4, 7).flatten(1, 3)


def save_latents(output_path: Path, media_path: str, latents: Tensor, fps: Any = 24.0) -> Path:
    """`compute_video_latents` of its process_videos.py for one clip: latents [C,F,H,W], a rate or none."""
    _, num_frames, height, width = latents.shape
    output_file = output_path / Path(media_path).with_suffix(".pt")
    output_file.parent.mkdir(parents=True, exist_ok=True)
    latent_data = {
        "latents": pack_latents(latents[None])[0].cpu().contiguous(),
        "num_frames": num_frames,
        "height": height,
        "width": width,
        "fps": fps,
    }
    if fps is None:
        del latent_data["fps"]
    torch.save(latent_data, output_file)
    return output_file


def save_condition(
    output_path: Path, media_path: str, embeds: Tensor, padded: int, left: bool = False
) -> Path:
    """`compute_captions_embeddings` of its process_captions.py: embeds [T,D] of real tokens, padded with noise."""
    padding = torch.randn(padded - len(embeds), embeds.shape[1]).to(embeds.dtype)
    mask = torch.cat([torch.ones(len(embeds)), torch.zeros(len(padding))]).bool()
    parts = [padding, embeds] if left else [embeds, padding]
    output_file = output_path / Path(media_path).with_suffix(".pt")
    output_file.parent.mkdir(parents=True, exist_ok=True)
    embedding_data = {
        "prompt_embeds": torch.cat(parts).cpu().contiguous(),
        "prompt_attention_mask": (mask.flip(0) if left else mask).cpu().contiguous(),
    }
    torch.save(embedding_data, output_file)
    return output_file


def save_sample(
    root: Path,
    media_path: str,
    *,
    grid: tuple[int, int, int] = (2, 3, 4),
    channels: int = 4,
    text: int = 5,
    width: int = 16,
    padded: int = 12,
    fps: Any = 24.0,
    references: tuple[str, ...] = (),
    dtype: torch.dtype = torch.bfloat16,
    seed: int = 0,
) -> dict[str, Tensor]:
    """One random sample below `root` (the .precomputed folder); returns its tensors as a sample has them."""
    torch.manual_seed(seed)
    tensors = {
        "latents": torch.randn(channels, *grid).to(dtype),
        "prompt_embeds": torch.randn(text, width).to(dtype),
    }
    save_latents(root / "latents", media_path, tensors["latents"], fps)
    save_condition(root / "conditions", media_path, tensors["prompt_embeds"], padded)
    for number, name in enumerate(references):
        reference = torch.randn(channels, *grid).to(dtype)
        tensors["reference_latents" if number == 0 else f"reference_latents_{number + 1}"] = reference
        save_latents(root / name, media_path, reference, fps)
    return tensors
