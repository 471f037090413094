"""Clips that a pipeline of the tiny domain makes of captions, by diffusers' own LTXPipeline."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np
import torch
from diffusers import LTXPipeline

from dist_trainer.tiny.domain import FPS, FRAMES, SIZE
from shards.prepare.media.shapes import COLOURS, MOVES, SHAPES

STEPS = 20
GUIDANCE = 2.0


def captions(colours: Sequence[str] = tuple(COLOURS), shapes: Sequence[str] = SHAPES) -> list[str]:
    """A caption for each colour and shape; no shape always moves the same way."""
    made = []
    for number, (colour, shape) in enumerate(product(colours, shapes)):
        article = "an" if colour[0] in "aeiou" else "a"
        move = list(MOVES)[(number + number // len(MOVES)) % len(MOVES)]
        made.append(f"{article} {colour} {shape} moves {move}")
    return made


def generate(
    pipeline: LTXPipeline,
    prompts: Sequence[str],
    seed: int = 0,
    steps: int = STEPS,
    guidance: float = GUIDANCE,
) -> list[np.ndarray]:
    """A clip of each prompt, uint8 [F,H,W,3]; the same for the same arguments on one machine."""
    pipeline.set_progress_bar_config(disable=True)
    made = pipeline(
        prompt=list(prompts),
        negative_prompt=[""] * len(prompts),
        width=SIZE,
        height=SIZE,
        num_frames=FRAMES,
        frame_rate=FPS,
        num_inference_steps=steps,
        guidance_scale=guidance,
        generator=[torch.Generator().manual_seed(seed + number) for number in range(len(prompts))],
        output_type="np",
    )
    return list((made.frames * 255).round().astype(np.uint8))
