from __future__ import annotations

import numpy as np

from dist_trainer.figures.bins import by_length, by_sigma


def test_losses_are_averaged_by_quarter_of_the_noise_level_and_empty_quarters_have_no_figure() -> None:
    sigmas = np.array([0.0, 0.2499, 0.25, 0.75, 1.0], np.float32)
    assert by_sigma(np.array([1.0, 2.0, 4.0, 8.0, 10.0]), sigmas) == {
        "train/loss_sigma_0.00-0.25": 1.5,
        "train/loss_sigma_0.25-0.50": 4.0,
        "train/loss_sigma_0.75-1.00": 9.0,
    }


def test_losses_are_averaged_by_power_of_two_of_the_length() -> None:
    tokens = np.array([1, 1023, 1024, 2047, 2048, 2**40 - 1])
    assert by_length(np.array([1.0, 2.0, 3.0, 5.0, 6.0, 7.0]), tokens) == {
        "train/loss_length_1": 1.0,
        "train/loss_length_512": 2.0,
        "train/loss_length_1024": 4.0,
        "train/loss_length_2048": 6.0,
        f"train/loss_length_{2**39}": 7.0,
    }


def test_a_loss_that_is_not_finite_shows_in_its_own_bins_only() -> None:
    found = by_sigma(np.array([np.nan, 2.0]), np.array([0.1, 0.6], np.float32))
    assert np.isnan(found.pop("train/loss_sigma_0.00-0.25"))
    assert found == {"train/loss_sigma_0.50-0.75": 2.0}
