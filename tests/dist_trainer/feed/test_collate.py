from __future__ import annotations

import pytest
import torch

from dist_trainer.feed.collate import Pack, collate, draws, idle
from dist_trainer.feed.conditioning import Recipe, build, patchify
from dist_trainer.model.loss import sample_sums
from shards.errors import InputError
from shards.formats.sample import Sample
from shards.geometry import Grid, Patch, Scale
from shards.hashing import sample_id

CHANNELS, TEXT = 3, 8
RECIPE = Recipe(Scale(8, 32), Patch(), mode="reference_video", first_frame_p=0.5, seed=11)
SIZES = {"a": Grid(3, 2, 2), "b": Grid(1, 4, 2), "c": Grid(2, 2, 4), "d": Grid(5, 2, 2), "e": Grid(4, 4, 2)}
# Each sample has a reference of its own size, these have a smaller one besides.
SECOND = {"a": Grid(1, 1, 1), "e": Grid(4, 2, 1)}


def _samples(text_tokens: int = 5) -> list[Sample]:
    generator = torch.Generator().manual_seed(0)
    return [
        Sample(
            key,
            sample_id(key),
            torch.randn(CHANNELS, *grid, generator=generator).bfloat16(),
            torch.randn(text_tokens + index, TEXT, generator=generator).bfloat16(),
            tuple(
                torch.randn(CHANNELS, *size, generator=generator).bfloat16()
                for size in (grid, SECOND.get(key))
                if size
            ),
            24.0 + index,
        )
        for index, (key, grid) in enumerate(SIZES.items())
    ]


def _pack(order: list[int], recipe: Recipe = RECIPE) -> Pack:
    samples = [_samples()[index] for index in order]
    chance = draws(samples, [2] * len(samples), recipe)
    return collate(samples, chance, recipe, positions=order, weights=[index + 0.5 for index in order])


def _by_sample(pack: Pack) -> dict[str, tuple[torch.Tensor, ...]]:
    """What each sample of a pack brings to the model and to the loss."""
    per_token = pack.timesteps[pack.timestep_index]
    has_loss = torch.zeros(len(pack.tokens), dtype=torch.bool).index_fill(0, pack.loss_index, True)
    columns = (
        pack.tokens.split(pack.lengths.values),
        pack.text.split(pack.text_lengths.values),
        per_token.split(pack.lengths.values),
        pack.coords.T.split(pack.lengths.values),
        has_loss.split(pack.lengths.values),
        pack.target.split(pack.loss_lengths.tolist()),
        pack.positions,
        pack.elements,
        pack.weights,
        pack.sigmas,
    )
    return dict(zip(pack.keys, zip(*columns, strict=True), strict=True))


@pytest.mark.parametrize("order", [[4, 3, 2, 1, 0], [2], [1, 3], [0, 4, 2]])
def test_what_a_sample_trains_does_not_depend_on_its_pack(order: list[int]) -> None:
    whole, part = _by_sample(_pack([0, 1, 2, 3, 4])), _by_sample(_pack(order))
    for key, values in part.items():
        assert all(torch.equal(mine, theirs) for mine, theirs in zip(values, whole[key], strict=True)), key


def test_a_pack_is_its_samples_end_to_end() -> None:
    samples = _samples()
    chance = draws(samples, [2] * 5, RECIPE)
    assert {draw.first_frame for draw in chance} == {True, False}
    for sample, draw in zip(samples, chance, strict=True):
        built = build(sample, draw, RECIPE)
        tokens, text, timesteps, coords, has_loss, target, _, elements, _, sigma = _by_sample(
            _pack([0, 1, 2, 3, 4])
        )[sample.key]
        assert torch.equal(tokens, built.tokens)
        assert torch.equal(text, sample.prompt_embeds)
        assert torch.equal(coords.T, built.coords)
        assert torch.equal(target, built.target)
        noisy = torch.arange(len(tokens)) >= built.clean
        assert torch.equal(timesteps, torch.where(noisy, built.timestep, 0))
        assert torch.equal(has_loss, noisy)
        assert elements == target.numel()
        assert sigma == draw.sigma


def test_samples_of_one_and_two_references_share_a_pack() -> None:
    pack = _pack([0, 1, 2, 3, 4])
    patch = RECIPE.patch
    for key, length in zip(pack.keys, pack.lengths.values, strict=True):
        own, second = SIZES[key].tokens(patch), SECOND[key].tokens(patch) if key in SECOND else 0
        assert length == 2 * own + second
        tokens, _, timesteps, coords, has_loss, *_ = _by_sample(pack)[key]
        sample = next(sample for sample in _samples() if sample.key == key)
        shown = torch.cat([patchify(reference.float(), patch) for reference in sample.references])
        assert torch.equal(tokens[: own + second], shown)
        assert not timesteps[: own + second].any()
        assert not has_loss[: own + second].any()
        assert torch.equal(coords[:own], coords[own + second :]), "a reference of its size lies on the target"


def test_each_distinct_timestep_is_embedded_once() -> None:
    pack = _pack([0, 1, 2, 3, 4])
    assert pack.timesteps.dtype == pack.timestep_index.dtype == torch.int64
    assert pack.timesteps.tolist() == sorted(set(pack.timesteps[pack.timestep_index].tolist()))
    assert len(pack.timesteps) <= len(pack.keys) + 1


def test_draws_change_with_the_epoch_and_not_with_the_company() -> None:
    samples = _samples()
    together = draws(samples, [0] * 5, RECIPE)
    alone = draws(samples[3:4], [0], RECIPE)[0]
    later = draws(samples[3:4], [1], RECIPE)[0]
    assert alone.sigma == together[3].sigma != later.sigma
    assert torch.equal(alone.noise, together[3].noise)
    assert not torch.equal(alone.noise, later.noise)


def test_moving_casts_what_the_model_multiplies_and_nothing_else() -> None:
    pack = _pack([0, 1]).to("cpu", torch.bfloat16)
    assert pack.tokens.dtype == pack.text.dtype == torch.bfloat16
    assert pack.coords.dtype == pack.target.dtype == pack.weights.dtype == torch.float32
    assert pack.keys == ("a", "b")
    moved = pack.to("meta", torch.bfloat16)
    assert {x.device.type for x in (moved.tokens, moved.target, moved.lengths.cumulative)} == {"meta"}
    assert moved.lengths.values == pack.lengths.values


def test_a_pack_does_not_share_memory_with_what_was_read() -> None:
    recipe = Recipe(Scale(8, 32), Patch(), first_frame_p=1.0)
    sample = _samples()[0]
    wide = Sample(sample.key, sample.id, sample.latents.float(), sample.prompt_embeds.float(), (), sample.fps)
    pack = collate([wide], draws([wide], [0], recipe), recipe, [0], [1.0])
    before = pack.tokens.clone(), pack.text.clone()
    wide.latents.zero_()
    wide.prompt_embeds.zero_()
    assert torch.equal(pack.tokens, before[0])
    assert torch.equal(pack.text, before[1])


def test_an_idle_pack_weighs_nothing() -> None:
    pack = idle(CHANNELS, TEXT)
    prediction = torch.ones(1, CHANNELS, requires_grad=True)
    sums = sample_sums(prediction, pack)
    (sums * pack.weights).sum().backward()
    assert prediction.grad is not None
    assert not prediction.grad.any()
    assert pack.elements.tolist() == [0]
    assert pack.positions.tolist() == [-1]
    assert vars(pack).keys() == vars(_pack([0])).keys()


def test_empty_text_is_named() -> None:
    sample = _samples()[0]
    silent = Sample(sample.key, sample.id, sample.latents, sample.prompt_embeds[:0], (), sample.fps)
    recipe = Recipe(Scale(8, 32), Patch())
    with pytest.raises(InputError, match=r"'a'.*text"):
        collate([silent], draws([silent], [0], recipe), recipe, [0], [1.0])
