from __future__ import annotations

import cv2
import numpy as np

from dist_trainer.tiny.domain import scenes
from dist_trainer.tiny.probe import Seen, look, share_right
from shards.prepare.media.shapes import COLOURS, NEW_COLOURS, NEW_SHAPES, SHAPES, draw

ALL = scenes(24 * 7 * 5 // 6, 3, colours=(*COLOURS, *NEW_COLOURS), shapes=(*SHAPES, *NEW_SHAPES), pictures=0)


def spoiled(frames: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Blurred and noisy, as a small model's clips are."""
    blurred = np.stack([cv2.GaussianBlur(frame, (0, 0), 1.2) for frame in frames])
    return np.clip(blurred + random.normal(0, 12, blurred.shape), 0, 255).astype(np.uint8)


def test_the_probe_sees_what_was_drawn_also_through_blur_and_noise() -> None:
    random = np.random.default_rng(0)
    for scene in ALL:
        told = Seen(scene.colour, scene.shape, scene.move)
        assert look(draw(scene)) == told
        assert look(spoiled(draw(scene), random)) == told


def test_captions_of_other_clips_are_right_by_chance_alone() -> None:
    clips = [draw(scene) for scene in ALL[:70]]
    others = [scene.caption for scene in ALL[70:]]
    found = share_right(clips, others)
    assert found["all"] < 0.1
    assert all(found[part] < 0.4 for part in ("colour", "shape", "move"))


def test_nothing_is_seen_in_darkness_and_no_move_in_a_picture() -> None:
    assert look(np.full((9, 64, 64, 3), 60, np.uint8)) == Seen(None, None, None)
    picture = scenes(8, 0)[7]
    assert look(draw(picture)) == Seen(picture.colour, picture.shape, None)
    assert look(draw(picture)).follows(picture.caption)
