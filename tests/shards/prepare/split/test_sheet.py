"""Sheets are pictures with a tile for each scene, which shows what is at its first, middle and last frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.prepare.split.scenes import Scene
from shards.prepare.split.sheet import TILE, clock, shown_frames, thumbnail, write_sheet
from tests.support.clips import PALETTE


def scene(number: int) -> Scene:
    return Scene(10 * number, 10 * number + 10, number / 2, number / 2 + 0.5)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_every_scene_has_a_tile_with_three_thumbnails(tmp_path: Path, count: int) -> None:
    colours = [PALETTE[number % len(PALETTE)] for number in range(3 * count)]
    thumbs = [thumbnail(np.broadcast_to(np.array(colour, np.uint8), (90, 160, 3))) for colour in colours]
    pages = [(scene(number), thumbs[3 * number : 3 * number + 3]) for number in range(count)]
    write_sheet(tmp_path / "a.jpg", "a.mp4", 1, pages)
    with Image.open(tmp_path / "a.jpg") as picture:
        picture.load()
        page = np.asarray(picture).astype(int)
    columns, rows = min(count, 2), -(-count // 2)
    title = page.shape[0] - rows * TILE[1]
    assert page.shape[1] == columns * TILE[0]
    assert 0 < title < 60
    for place, colour in enumerate(colours):
        tile, index = divmod(place, 3)
        x = tile % 2 * TILE[0] + (2 * index + 1) * TILE[0] // 6
        y = title + tile // 2 * TILE[1] + 2 * TILE[1] // 3
        assert np.abs(page[y, x] - colour).max() < 16
    # Numbers and times stand above the thumbnails.
    for number in range(count):
        left, top = number % 2 * TILE[0], title + number // 2 * TILE[1]
        assert page[top : top + 18, left : left + TILE[0]].max() > 150


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_shown_frames_are_in_the_scene(first: int, frames: int) -> None:
    shown = shown_frames(Scene(first, first + frames, 0.0, 1.0))
    assert len(shown) == 3
    assert list(shown) == sorted(shown)
    assert shown[0] == first
    assert shown[-1] == first + frames - 1


@pytest.mark.parametrize("shape", [(2160, 3840, 3), (1920, 1080, 3), (20, 30, 3), (1, 900, 3)])
def test_thumbnails_are_small_and_keep_their_shape(shape: tuple[int, int, int]) -> None:
    thumb = thumbnail(np.zeros(shape, np.uint8))
    assert thumb.width * 3 < TILE[0]
    assert thumb.height < TILE[1]
    assert thumb.width / thumb.height == pytest.approx(shape[1] / shape[0], rel=0.02) or 1 in thumb.size


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "00:00:00.00"), (59.999, "00:01:00.00"), (3725.25, "01:02:05.25")]
)
def test_times_are_read_as_on_a_clock(seconds: float, text: str) -> None:
    assert clock(seconds) == text
