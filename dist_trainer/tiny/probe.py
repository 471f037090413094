"""What a clip of the tiny domain shows, by plain arithmetic on its frames: colour, shape and direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from shards.prepare.media.shapes import COLOURS, MOVES, NEW_COLOURS, NEW_SHAPES, RADIUS, SHAPES, covered

_BRIGHT = 125  # the strongest channel of every colour is above it, every backdrop below
_FEWEST = 40  # pixels of something that counts as a shape
_LEAST_MOVE = 4.0  # pixels from the first frame to the last


class Seen(NamedTuple):
    """What was seen; None where there is nothing to see."""

    colour: str | None
    shape: str | None
    move: str | None

    def follows(self, caption: str) -> bool:
        """Whether all that `caption` asks for was seen; a caption of a picture asks for no move."""
        words = caption.split()
        move = words[-1] if words[-1] in MOVES else None
        return self.colour in words and self.shape in words and (move is None or move == self.move)


def look(frames: np.ndarray) -> Seen:
    """What frames uint8 [F,H,W,3] show: the nearest known colour, the shape that fits best, where it goes."""
    masks = frames.max(axis=-1) > _BRIGHT
    if (masks.sum(axis=(1, 2)) < _FEWEST).any():
        return Seen(None, None, None)
    centres = np.stack([_centre(mask) for mask in masks])
    return Seen(_colour(frames, masks), _shape(masks, centres), _move(centres))


def share_right(clips: Sequence[np.ndarray], captions: Sequence[str]) -> dict[str, float]:
    """Shares of clips, in [0,1], whose colour, shape and move are those of their captions, and of all three."""
    seen = [look(clip) for clip in clips]
    pairs = list(zip(seen, captions, strict=True))
    return {
        "colour": float(np.mean([found.colour in caption.split() for found, caption in pairs])),
        "shape": float(np.mean([found.shape in caption.split() for found, caption in pairs])),
        "move": float(np.mean([found.move in caption.split() for found, caption in pairs])),
        "all": float(np.mean([found.follows(caption) for found, caption in pairs])),
    }


def _colour(frames: np.ndarray, masks: np.ndarray) -> str:
    inside = frames[masks]
    strength = inside.max(axis=-1)
    # Along a soft outline a colour fades into the backdrop: the strongest half tells.
    seen = np.median(inside[strength >= np.median(strength)], axis=0)
    known = COLOURS | NEW_COLOURS
    return min(known, key=lambda name: float(np.linalg.norm(seen - known[name])))


def _shape(masks: np.ndarray, centres: np.ndarray) -> str:
    def overlap(name: str) -> float:
        return float(
            np.mean([_overlap(name, mask, centre) for mask, centre in zip(masks, centres, strict=True)])
        )

    return max((*SHAPES, *NEW_SHAPES), key=overlap)


def _overlap(name: str, mask: np.ndarray, centre: np.ndarray) -> float:
    """Intersection over union of a mask and the shape drawn with the same centre of mass."""
    radius = RADIUS * min(mask.shape)
    across, down = np.meshgrid(np.arange(mask.shape[1]), np.arange(mask.shape[0]))
    own = _centre(covered(name, *(axis / radius for axis in _round_centre(mask.shape))))
    middle = np.array(mask.shape[::-1]) / 2
    x, y = across - centre[0] - middle[0] + own[0], down - centre[1] - middle[1] + own[1]
    drawn = covered(name, x / radius, y / radius)
    return float((drawn & mask).sum() / (drawn | mask).sum())


def _round_centre(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    height, width = shape
    across, down = np.meshgrid(np.arange(width) - width / 2, np.arange(height) - height / 2)
    return across, down


def _centre(mask: np.ndarray) -> np.ndarray:
    """Centre of mass [x, y] in pixels."""
    down, across = np.nonzero(mask)
    return np.array([across.mean(), down.mean()])


def _move(centres: np.ndarray) -> str | None:
    if len(centres) < 2:
        return None
    way = centres[-1] - centres[0]
    if np.abs(way).max() < _LEAST_MOVE:
        return None
    axis = int(np.argmax(np.abs(way)))
    return next(name for name, step in MOVES.items() if step[axis] == np.sign(way[axis]))
