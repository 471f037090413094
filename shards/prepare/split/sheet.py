"""Pictures to look through a video's scenes: first, middle and last frame of each, with number and times."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from shards.prepare.split.scenes import Scene

PER_PAGE = 40
SHOWN = 3  # frames of a scene
_COLUMNS = 2
_THUMB = (192, 108)
_GAP, _LINE, _TITLE = 6, 20, 30
_BACKGROUND, _INK, _TITLE_INK = (24, 24, 24), (200, 200, 200), (255, 255, 255)
TILE = (SHOWN * (_THUMB[0] + _GAP) + _GAP, _LINE + _THUMB[1] + _GAP)
"""Width and height in pixels of what shows a scene."""


def shown_frames(scene: Scene) -> tuple[int, ...]:
    """Numbers of the frames that a sheet shows of a scene."""
    return scene.first, (scene.first + scene.end - 1) // 2, scene.end - 1


def thumbnail(frame: np.ndarray) -> Image.Image:
    """A frame uint8 [H,W,3], small."""
    picture = Image.fromarray(frame)
    picture.thumbnail(_THUMB)
    return picture


def write_sheet(
    path: Path, title: str, number: int, scenes: Sequence[tuple[Scene, Sequence[Image.Image]]]
) -> None:
    """Write a page as a JPEG: up to `PER_PAGE` scenes with their thumbnails, counted from `number`."""
    rows = -(-len(scenes) // _COLUMNS)
    columns = min(_COLUMNS, len(scenes))
    page = Image.new("RGB", (columns * TILE[0], _TITLE + rows * TILE[1]), _BACKGROUND)
    draw = ImageDraw.Draw(page)
    draw.text((_GAP, _GAP), title, fill=_TITLE_INK, font=ImageFont.load_default(15))
    font = ImageFont.load_default(13)
    for place, (scene, thumbs) in enumerate(scenes):
        left, top = place % _COLUMNS * TILE[0], _TITLE + place // _COLUMNS * TILE[1]
        text = f"{number + place}    {clock(scene.start_s)} - {clock(scene.end_s)}    {scene.frames} frames"
        draw.text((left + _GAP, top + 2), text, fill=_INK, font=font)
        for index, thumb in enumerate(thumbs):
            room = [full - size for full, size in zip(_THUMB, thumb.size, strict=True)]
            corner = (left + _GAP + index * (_THUMB[0] + _GAP) + room[0] // 2, top + _LINE + room[1] // 2)
            page.paste(thumb, corner)
    page.save(path, "JPEG", quality=85)


def clock(seconds: float) -> str:
    """Seconds as HH:MM:SS.ss."""
    hundredths = round(seconds * 100)
    minutes, rest = divmod(hundredths, 6000)
    return f"{minutes // 60:02d}:{minutes % 60:02d}:{rest // 100:02d}.{rest % 100:02d}"
