"""Videos as GIFs: in their own time, of a size that an events file can take."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from dist_trainer.board.moving import animated


def shades(count: int, height: int, width: int) -> np.ndarray:
    """Frames that get brighter, so that no two are the same."""
    grey = np.linspace(0, 255, count).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (count, height, width, 3)).copy()


@pytest.mark.parametrize("fps", [8.0, 24.0, 30.0, 60.0, 120.0])
def test_a_video_keeps_its_time(fps: float) -> None:
    made = animated(shades(49, 16, 32), fps)
    with Image.open(io.BytesIO(made)) as picture:
        lengths = []
        for number in range(picture.n_frames):
            picture.seek(number)
            lengths.append(picture.info["duration"])
        assert picture.info["loop"] == 0
        assert picture.size == (32, 16)
    assert abs(sum(lengths) - 49 * 1000 / fps) <= 1000 / fps * 6
    assert min(lengths) >= 20


def test_a_long_large_video_is_made_small() -> None:
    made = animated(shades(161, 480, 1408), 25.0)
    with Image.open(io.BytesIO(made)) as picture:
        assert picture.size == (548, 187)
        assert picture.n_frames <= 41
        picture.seek(picture.n_frames - 1)
        last = np.asarray(picture.convert("RGB")).astype(int)
    assert abs(int(last.mean()) - 255) < 8


def test_what_compresses_badly_stays_small_too() -> None:
    noise = np.random.default_rng(0).integers(0, 255, (49, 128, 128, 3), dtype=np.uint8)
    noise = noise.repeat(4, axis=1).repeat(4, axis=2)
    assert len(animated(noise, 25.0)) < 6e6


def test_colours_stay_what_they_are() -> None:
    frames = np.zeros((2, 8, 8, 3), np.uint8)
    frames[0, :, :4], frames[1, :, 4:] = (220, 40, 40), (40, 190, 70)
    with Image.open(io.BytesIO(animated(frames, 10.0))) as picture:
        for number, frame in enumerate(frames):
            picture.seek(number)
            assert np.abs(np.asarray(picture.convert("RGB")).astype(int) - frame).max() < 20
