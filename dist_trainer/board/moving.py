"""Videos as pictures that move: animated GIFs, which a browser plays by itself, small enough for an events file."""

from __future__ import annotations

import io
import itertools
import math

import numpy as np
from PIL import Image

# A byte a pixel at most or little more, as GIF has it: 4 MB a video, however large and long it is.
_MOST_PIXELS = 320 * 320  # of a frame; two videos side by side share them
_MOST_FRAMES = 41
_LEAST_MS = 20  # browsers show a frame that says less for 100 ms
_TICK_MS = 10  # a GIF counts time in these


def animated(frames: np.ndarray, fps: float) -> bytes:
    """The video uint8 [F,H,W,3], RGB, of `fps` frames per second, in its own time, as a GIF.

    A long or fast one loses frames, a large one is scaled down.
    """
    count, height, width = frames.shape[:3]
    every = max(1, math.ceil(count / _MOST_FRAMES), math.ceil(_LEAST_MS * fps / 1000 - 1e-6))
    scale = min(1.0, math.sqrt(_MOST_PIXELS / (height * width)))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    pictures = [Image.fromarray(frame) for frame in frames[::every]]
    if size != (width, height):
        pictures = [picture.resize(size, Image.Resampling.LANCZOS) for picture in pictures]
    # By default Pillow looks for the best 256 colours, sixty times as long.
    pictures = [picture.quantize(256, Image.Quantize.FASTOCTREE) for picture in pictures]
    data = io.BytesIO()
    # What is left between a frame's time and the GIF's ticks would add up, so ends are rounded, not lengths.
    ends = [round(number * every * 1000 / fps / _TICK_MS) * _TICK_MS for number in range(len(pictures) + 1)]
    lengths = [end - begin for begin, end in itertools.pairwise(ends)]
    pictures[0].save(
        data, "GIF", save_all=True, append_images=pictures[1:], duration=lengths, loop=0, optimize=False
    )
    return data.getvalue()
