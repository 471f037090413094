from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import InputError
from shards.geometry import Bucket, Grid, Patch, Scale

sides = st.integers(1, 60)
scales = st.builds(Scale, st.integers(1, 16), st.integers(1, 64))


@pytest.mark.parametrize(
    ("scale", "pixels", "grid"),
    [
        (Scale(8, 32), (89, 448, 768), (12, 14, 24)),
        (Scale(8, 32), (1, 512, 512), (1, 16, 16)),
        (Scale(1, 4), (3, 8, 12), (3, 2, 3)),
    ],
)
def test_grid_of_a_clip(scale: Scale, pixels: tuple[int, int, int], grid: tuple[int, int, int]) -> None:
    assert scale.grid(*pixels) == Grid(*grid)


@given(scales, st.builds(Grid, sides, sides, sides))
def test_pixels_is_the_inverse_of_grid(scale: Scale, grid: Grid) -> None:
    assert scale.grid(*scale.pixels(grid)) == grid


@given(scales, st.integers(1, 500))
def test_frames_below_is_the_largest_encodable_count(scale: Scale, frames: int) -> None:
    below = scale.frames_below(frames)
    assert 1 <= below <= frames < below + scale.temporal
    scale.grid(below, scale.spatial, scale.spatial)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        ((88, 448, 768), ["88 frames", "multiple of 8 plus 1", "81"]),
        ((0, 448, 768), ["0 frames"]),
        ((89, 450, 768), ["768x450", "multiples of 32"]),
        ((89, 448, 0), ["0x448"]),
    ],
)
def test_sizes_the_vae_cannot_take_are_refused(pixels: tuple[int, int, int], words: list[str]) -> None:
    with pytest.raises(InputError) as error:
        Scale(8, 32).grid(*pixels)
    assert all(word in str(error.value) for word in words)


def test_tokens_are_cells_divided_by_the_patch() -> None:
    assert Grid(6, 14, 24).tokens() == 6 * 14 * 24
    assert Grid(6, 14, 24).tokens(Patch(temporal=2, spatial=2)) == 3 * 7 * 12
    with pytest.raises(InputError, match="not divisible"):
        Grid(6, 14, 24).tokens(Patch(temporal=4))


@given(
    st.lists(st.builds(Bucket, sides, sides, sides), min_size=1, unique=True),
    st.sampled_from([",", ";", " , "]),
)
def test_bucket_lists_round_trip(buckets: list[Bucket], separator: str) -> None:
    assert Bucket.parse_list(separator.join(map(str, buckets))) == tuple(buckets)


def test_repeated_buckets_count_once() -> None:
    assert Bucket.parse_list("768x448x89; 512x512x1,768X448X89") == (
        Bucket(768, 448, 89),
        Bucket(512, 512, 1),
    )


@pytest.mark.parametrize(
    "text", ["768x448", "768x448x89x1", "axbxc", "0x448x1", "768*448*89", "-8x8x1", "8x8x1.5"]
)
def test_a_malformed_bucket_is_named(text: str) -> None:
    with pytest.raises(InputError, match="WIDTHxHEIGHTxFRAMES") as error:
        Bucket.parse_list(f"512x512x1,{text}")
    assert repr(text) in str(error.value)


@pytest.mark.parametrize("text", ["", " ", ",;"])
def test_an_empty_bucket_list_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="no bucket"):
        Bucket.parse_list(text)
