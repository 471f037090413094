from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dist_trainer.feed import flow
from dist_trainer.feed.flow import Sampling
from shards.errors import InputError

IDS = np.arange(20_000, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
FIRST_EPOCH = np.zeros(len(IDS), dtype=np.int64)


@given(st.permutations(range(50)), st.integers(0, 2**63 - 1))
@settings(max_examples=20, deadline=None)
def test_draws_belong_to_samples_not_to_their_order(order: list[int], seed: int) -> None:
    ids, epochs, tokens = IDS[:50], np.arange(50) % 3, np.arange(1, 51) * 100
    levels = flow.sigmas(seed, epochs, ids, tokens, Sampling())
    coins = flow.coins(seed, epochs, ids, 0.5)
    assert np.array_equal(
        flow.sigmas(seed, epochs[order], ids[order], tokens[order], Sampling()), levels[order]
    )
    assert np.array_equal(flow.coins(seed, epochs[order], ids[order], 0.5), coins[order])
    one = order[0]
    assert flow.sigmas(seed, [epochs[one]], ids[one : one + 1], [tokens[one]], Sampling())[0] == levels[one]


def test_seed_epoch_and_sample_each_change_the_draw() -> None:
    def both(seed: int, epoch: int, id: int) -> tuple[float, float]:
        level = flow.sigmas(seed, [epoch], [id], [1024], Sampling())[0]
        return float(level), flow.noise(seed, epoch, id, (4,))[0].item()

    variants = [both(0, 0, 5), both(1, 0, 5), both(0, 1, 5), both(0, 0, 6), both(0, 0, 2**64 - 1)]
    for draws in zip(*variants, strict=True):
        assert len(set(draws)) == len(variants)
    assert both(0, 0, 5) == variants[0]


def test_coins_are_tossed_anew_for_each_seed_and_epoch() -> None:
    first = flow.coins(0, FIRST_EPOCH, IDS, 0.5)
    for other in (flow.coins(1, FIRST_EPOCH, IDS, 0.5), flow.coins(0, FIRST_EPOCH + 1, IDS, 0.5)):
        assert (first == other).mean() == pytest.approx(0.5, abs=0.02)


def test_the_coin_falls_with_its_probability_and_tells_nothing_about_sigma() -> None:
    coins = flow.coins(7, FIRST_EPOCH, IDS, 0.2)
    assert coins.mean() == pytest.approx(0.2, abs=0.015)
    assert not flow.coins(7, FIRST_EPOCH, IDS, 0.0).any()
    assert flow.coins(7, FIRST_EPOCH, IDS, 1.0).all()
    levels = flow.sigmas(7, FIRST_EPOCH, IDS, np.full(len(IDS), 1024), Sampling("uniform"))
    assert levels[coins].mean() == pytest.approx(levels[~coins].mean(), abs=0.03)


@pytest.mark.parametrize(
    ("tokens", "median"), [(1024, 0.721), (2304, 0.804), (4032, 0.884), (4096, 0.886), (8192, 0.971)]
)
def test_longer_samples_get_noisier(tokens: int, median: float) -> None:
    levels = flow.sigmas(0, FIRST_EPOCH, IDS, np.full(len(IDS), tokens), Sampling())
    assert levels.dtype == np.float32
    assert np.median(levels) == pytest.approx(median, abs=0.008)
    logits = np.log(levels.astype(np.float64) / (1 - levels.astype(np.float64)))
    assert logits.mean() == pytest.approx(float(flow.shift(tokens, Sampling())), abs=0.03)
    assert logits.std() == pytest.approx(1.0, abs=0.03)


def test_the_shift_can_be_clamped() -> None:
    clamped = Sampling(min_tokens=1024, max_tokens=4096)
    assert (
        flow.shift([256, 2000, 12000], clamped).tolist()
        == flow.shift([1024, 2000, 4096], Sampling()).tolist()
    )


def test_uniform_levels_fill_their_range() -> None:
    levels = flow.sigmas(3, FIRST_EPOCH, IDS, FIRST_EPOCH, Sampling("uniform", min_value=0.2, max_value=0.6))
    counts, _ = np.histogram(levels, bins=4, range=(0.2, 0.6))
    assert counts.sum() == len(IDS)
    assert counts.min() > 0.9 * counts.max()


def test_unknown_sampling_mode_is_refused() -> None:
    with pytest.raises(InputError, match=r"logit_normal_typo.*shifted_logit_normal"):
        flow.sigmas(0, [0], [1], [1], Sampling("logit_normal_typo"))  # type: ignore[arg-type]


def test_noise_is_standard_normal_and_repeats() -> None:
    noise = flow.noise(1, 2, 3, (8, 10, 20, 30))
    assert (noise.shape, noise.dtype) == ((8, 10, 20, 30), torch.float32)
    assert torch.equal(noise, flow.noise(1, 2, 3, (8, 10, 20, 30)))
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)


def test_noise_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    flow.noise(1, 2, 3, (5,))
    assert torch.equal(torch.rand(1), expected)


def test_noising_runs_straight_from_data_to_noise() -> None:
    clean, noise = torch.randn(4, 3), torch.randn(4, 3)
    assert torch.equal(flow.add_noise(clean, noise, 0.0), clean)
    assert torch.equal(flow.add_noise(clean, noise, 1.0), noise)
    # One step of any length along the velocity, back to the data.
    at = flow.add_noise(clean, noise, 0.7)
    torch.testing.assert_close(at - 0.7 * flow.velocity(clean, noise), clean)


@pytest.mark.parametrize(
    ("sigma", "told"), [(0.0, 0), (0.0004, 0), (0.0006, 1), (0.72149, 721), (0.9999, 1000)]
)
def test_the_model_is_told_whole_thousandths(sigma: float, told: int) -> None:
    assert flow.timestep(sigma) == told
    assert isinstance(flow.timestep(sigma), int)
