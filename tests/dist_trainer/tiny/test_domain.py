from __future__ import annotations

from collections import Counter

import numpy as np

from dist_trainer.tiny.domain import BUCKETS, FRAMES, SIZE, scenes
from shards.geometry import Bucket
from shards.prepare.media.shapes import COLOURS, SHAPES, draw


def test_every_kind_of_scene_is_as_frequent_and_none_is_like_another() -> None:
    made = scenes(192, 0)
    kinds = Counter((scene.colour, scene.shape, scene.move) for scene in made)
    assert len(kinds) == len(COLOURS) * len(SHAPES) * 4
    assert set(kinds.values()) == {2}
    assert len({scene.start for scene in made}) == 192
    assert made == scenes(192, 0)
    assert made != scenes(192, 1)
    assert Counter(scene.frames for scene in made) == {FRAMES: 168, 1: 24}
    assert {(scene.width, scene.height, scene.frames) for scene in made} == {
        (bucket.width, bucket.height, bucket.frames) for bucket in Bucket.parse_list(BUCKETS)
    }


def test_a_shape_never_leaves_the_frame() -> None:
    for scene in scenes(96, 5, shapes=("square", "star"), pictures=0):
        rows, columns = np.nonzero((draw(scene).max(axis=-1) > 125).any(axis=0))
        assert min(rows.min(), columns.min()) > 0
        assert max(rows.max(), columns.max()) < SIZE - 1
