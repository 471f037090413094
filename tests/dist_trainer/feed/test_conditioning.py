from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from diffusers import LTXConditionPipeline, LTXPipeline
from diffusers.models.transformers.transformer_ltx import LTXVideoRotaryPosEmbed
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.feed.conditioning import (
    Recipe,
    ReferenceScale,
    build,
    coordinates,
    first_frame_tokens,
    layout,
    loss_elements,
    patchify,
    reference_scale,
    unpatchify,
)
from dist_trainer.feed.flow import Draw
from shards.errors import InputError
from shards.formats.sample import Sample
from shards.geometry import Grid, Patch, Scale

GRIDS = st.builds(Grid, st.integers(1, 6), st.integers(1, 6), st.integers(1, 6))
PATCHES = st.builds(Patch, st.integers(1, 3), st.integers(1, 3))
SCALES = st.sampled_from([Scale(8, 32), Scale(4, 16), Scale(1, 8)])
RATES = st.sampled_from([1.0, 23.976, 24.0, 25.0, 29.97, 30.0, 59.94])


def _sample(grid: Grid, *references: Grid, channels: int = 3, fps: float = 24.0) -> Sample:
    generator = torch.Generator().manual_seed(0)

    def latents(size: Grid) -> torch.Tensor:
        return torch.randn(channels, *size, generator=generator).bfloat16()

    text = torch.randn(4, 8, generator=generator).bfloat16()
    return Sample("clip", 5, latents(grid), text, tuple(latents(reference) for reference in references), fps)


def _draw(grid: Grid, sigma: float = 0.25, first_frame: bool = False, channels: int = 3) -> Draw:
    return Draw(sigma, torch.randn(channels, *grid, generator=torch.Generator().manual_seed(9)), first_frame)


@given(GRIDS, PATCHES)
def test_tokens_are_in_diffusers_order_and_come_back(cells: Grid, patch: Patch) -> None:
    grid = Grid(cells.frames * patch.temporal, cells.height * patch.spatial, cells.width * patch.spatial)
    latents = torch.randn(2, *grid)
    tokens = patchify(latents, patch)
    assert torch.equal(tokens, LTXPipeline._pack_latents(latents[None], patch.spatial, patch.temporal)[0])
    assert tokens.shape[0] == grid.tokens(patch)
    assert torch.equal(unpatchify(tokens, grid, patch), latents)


@given(GRIDS, SCALES, RATES, PATCHES)
def test_plain_positions_give_diffusers_rope_to_the_last_bit(
    cells: Grid, scale: Scale, fps: float, patch: Patch
) -> None:
    rope = LTXVideoRotaryPosEmbed(dim=32, patch_size=patch.spatial, patch_size_t=patch.temporal)
    grid = Grid(cells.frames * patch.temporal, cells.height * patch.spatial, cells.width * patch.spatial)
    tokens = torch.empty(1, cells.tokens(Patch()), 1)
    by_scale = rope(
        tokens, *cells, rope_interpolation_scale=(scale.temporal / fps, scale.spatial, scale.spatial)
    )
    by_coords = rope(tokens, video_coords=coordinates(grid, fps, scale, patch)[None])
    for mine, theirs in zip(by_coords, by_scale, strict=True):
        assert torch.equal(mine, theirs)


@given(GRIDS, SCALES, RATES)
def test_causal_positions_are_the_condition_pipelines(grid: Grid, scale: Scale, fps: float) -> None:
    ids = LTXConditionPipeline._prepare_video_ids(1, *grid)
    coords = LTXConditionPipeline._scale_video_ids(ids, scale.spatial, scale.temporal).float()
    coords[:, 0] = coords[:, 0] * (1.0 / fps)
    assert torch.equal(coordinates(grid, fps, scale, Patch(), causal=True), coords[0])


@pytest.mark.parametrize("causal", [False, True])
def test_a_smaller_reference_lies_on_the_targets_positions(causal: bool) -> None:
    target, small, scale = Grid(7, 4, 6), Grid(4, 2, 3), Scale(8, 32)
    factor = reference_scale(target, small, "clip")
    assert factor == ReferenceScale(frames=2, height=2, width=2)
    spread = coordinates(small, 24.0, scale, Patch(), causal, factor).reshape(3, *small)
    whole = coordinates(target, 24.0, scale, Patch(), causal).reshape(3, *target)
    assert torch.equal(spread[1:, 0], whole[1:, 0, ::2, ::2])
    # A reference frame stands for two target frames; causally it starts with the first of them.
    frames = whole[0, [0, 1, 3, 5], 0, 0] if causal else whole[0, ::2, 0, 0]
    torch.testing.assert_close(spread[0, :, 0, 0], frames)


@pytest.mark.parametrize(
    ("reference", "axis"),
    [
        (Grid(7, 3, 6), "height"),
        (Grid(7, 4, 12), "width"),
        (Grid(5, 4, 6), "frames"),
        (Grid(9, 4, 6), "frames"),
    ],
)
def test_a_reference_that_does_not_divide_the_target_is_named(reference: Grid, axis: str) -> None:
    with pytest.raises(InputError, match=f"'clip'.*along {axis}"):
        reference_scale(Grid(7, 4, 6), reference, "clip")


def test_a_single_frame_reference_lies_on_the_first_frame() -> None:
    recipe = Recipe(Scale(8, 32), Patch(), causal=True)
    coords = layout(Grid(3, 2, 2), [Grid(1, 2, 2)], 24.0, recipe, "clip")
    assert torch.equal(coords[:, :4], coords[:, 4:8])


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_a_useless_frame_rate_is_named(fps: float) -> None:
    with pytest.raises(InputError, match=r"'clip'.*fps"):
        layout(Grid(1, 1, 1), [], fps, Recipe(Scale(8, 32), Patch()), "clip")


def test_without_conditions_every_token_is_noised() -> None:
    grid = Grid(3, 2, 2)
    sample, draw = _sample(grid), _draw(grid, sigma=0.25)
    built = build(sample, draw, Recipe(Scale(8, 32), Patch()))
    clean, noise = patchify(sample.latents.float(), Patch()), patchify(draw.noise, Patch())
    assert (built.clean, built.timestep) == (0, 250)
    torch.testing.assert_close(built.tokens, 0.75 * clean + 0.25 * noise)
    torch.testing.assert_close(built.target, noise - clean)
    assert built.tokens.dtype == built.target.dtype == built.coords.dtype == torch.float32


def test_a_clean_first_frame_is_shown_and_not_learned() -> None:
    grid, recipe = Grid(3, 2, 2), Recipe(Scale(8, 32), Patch())
    sample = _sample(grid)
    plain = build(sample, _draw(grid), recipe)
    built = build(sample, _draw(grid, first_frame=True), recipe)
    assert built.clean == 4
    assert torch.equal(built.tokens[:4], patchify(sample.latents.float(), Patch())[:4])
    assert torch.equal(built.tokens[4:], plain.tokens[4:])
    assert torch.equal(built.target, plain.target[4:])


def test_a_single_frame_has_no_first_frame_to_keep() -> None:
    grid, recipe = Grid(1, 2, 2), Recipe(Scale(8, 32), Patch())
    with_coin = build(_sample(grid), _draw(grid, first_frame=True), recipe)
    assert with_coin.clean == 0
    assert torch.equal(with_coin.tokens, build(_sample(grid), _draw(grid), recipe).tokens)


def test_the_reference_comes_first_clean_on_the_targets_positions() -> None:
    grid = Grid(2, 2, 2)
    sample = _sample(grid, grid)
    built = build(sample, _draw(grid), Recipe(Scale(8, 32), Patch(), mode="reference_video"))
    assert torch.equal(built.tokens[:8], patchify(sample.references[0].float(), Patch()))
    assert torch.equal(built.coords[:, :8], built.coords[:, 8:])
    assert (built.clean, len(built.tokens), len(built.target)) == (8, 16, 8)


REFERENCED = Recipe(Scale(8, 32), Patch(), mode="reference_video")


@pytest.mark.parametrize("causal", [False, True])
def test_two_references_come_in_their_order_each_on_its_own_scale(causal: bool) -> None:
    """Tokens and coordinates are those of each reference alone, laid before the target's."""
    grid, half, still = Grid(3, 4, 4), Grid(3, 2, 2), Grid(1, 4, 4)
    recipe = replace(REFERENCED, causal=causal)
    sample = _sample(grid, half, still)
    built = build(sample, _draw(grid), recipe)
    parts = [build(replace(sample, references=(one,)), _draw(grid), recipe) for one in sample.references]
    sizes = [half.tokens(Patch()), still.tokens(Patch())]
    alone = [(part.tokens[:size], part.coords[:, :size]) for part, size in zip(parts, sizes, strict=True)]
    target = sum(sizes)
    assert torch.equal(built.tokens[:target], torch.cat([tokens for tokens, _ in alone]))
    assert torch.equal(built.coords[:, :target], torch.cat([coords for _, coords in alone], dim=1))
    assert torch.equal(built.tokens[target:], parts[0].tokens[sizes[0] :])
    assert torch.equal(built.coords[:, target:], parts[0].coords[:, sizes[0] :])
    assert torch.equal(built.target, parts[0].target)
    assert built.clean == target


def test_the_order_of_references_is_that_of_the_sample() -> None:
    grid, half = Grid(2, 4, 4), Grid(2, 2, 2)
    sample = _sample(grid, grid, half)
    turned = replace(sample, references=sample.references[::-1])
    one, other = (build(each, _draw(grid), REFERENCED) for each in (sample, turned))
    own, small = grid.tokens(Patch()), half.tokens(Patch())
    assert torch.equal(
        other.tokens, torch.cat([one.tokens[own : own + small], one.tokens[:own], one.tokens[-own:]])
    )


@given(st.lists(st.integers(1, 3), max_size=4), st.booleans())
def test_any_number_of_references_is_clean_and_without_loss(factors: list[int], first_frame: bool) -> None:
    grid = Grid(3, 6, 6)
    sizes = [Grid(3, 6 // factor, 6 // factor) for factor in factors]
    recipe = REFERENCED if sizes else replace(REFERENCED, mode="none")
    built = build(_sample(grid, *sizes), _draw(grid, first_frame=first_frame), recipe)
    kept = first_frame_tokens(grid, Patch()) if first_frame else 0
    assert built.clean == sum(size.tokens(Patch()) for size in sizes) + kept
    assert built.target.numel() == loss_elements(grid, Patch(), first_frame, channels=3)
    assert built.coords.shape[1] == len(built.tokens)


def test_a_second_reference_that_does_not_fit_is_named() -> None:
    grid = Grid(2, 4, 4)
    with pytest.raises(InputError, match=r"'clip': reference latents \(2, 3, 4\).*along height"):
        build(_sample(grid, grid, Grid(2, 3, 4)), _draw(grid), REFERENCED)
    sample = _sample(grid, grid, grid)
    thin = replace(sample, references=(sample.references[0], sample.references[1][:2]))
    with pytest.raises(InputError, match="'clip': reference latents have 2 channels, the target's have 3"):
        build(thin, _draw(grid), REFERENCED)


def test_reference_and_first_frame_are_both_clean_and_contiguous() -> None:
    grid = Grid(3, 2, 2)
    recipe = Recipe(Scale(8, 32), Patch(), mode="reference_video")
    built = build(_sample(grid, grid), _draw(grid, first_frame=True), recipe)
    assert (built.clean, len(built.target)) == (12 + 4, 8)


def test_a_reference_is_left_out_when_the_mode_does_not_ask_for_it() -> None:
    grid = Grid(2, 2, 2)
    built = build(_sample(grid, grid), _draw(grid), Recipe(Scale(8, 32), Patch()))
    assert (built.clean, len(built.tokens)) == (0, 8)


def test_a_missing_reference_is_named() -> None:
    grid = Grid(2, 2, 2)
    recipe = Recipe(Scale(8, 32), Patch(), mode="reference_video")
    with pytest.raises(InputError, match=r"'clip'.*reference"):
        build(_sample(grid), _draw(grid), recipe)


def test_latents_that_are_not_whole_patches_are_named() -> None:
    grid = Grid(2, 3, 2)
    with pytest.raises(InputError, match=r"'clip'.*patches"):
        build(_sample(grid), _draw(grid), Recipe(Scale(8, 32), Patch(1, 2)))


@given(GRIDS, PATCHES, st.booleans())
def test_loss_elements_are_known_without_the_data(cells: Grid, patch: Patch, first_frame: bool) -> None:
    grid = Grid(cells.frames * patch.temporal, cells.height * patch.spatial, cells.width * patch.spatial)
    built = build(_sample(grid), _draw(grid, first_frame=first_frame), Recipe(Scale(8, 32), patch))
    assert loss_elements(grid, patch, first_frame, channels=3) == built.target.numel() > 0
    assert built.clean == (first_frame_tokens(grid, patch) if first_frame else 0)
