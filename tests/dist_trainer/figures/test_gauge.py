"""A step's figures, of runs that have been trained to their end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_trainer.build import Data, build_data, open_reader
from dist_trainer.config import load
from dist_trainer.feed.data import open_data, run_state
from dist_trainer.feed.feed import loader, micro_steps
from dist_trainer.feed.substitute import drawn_as
from dist_trainer.figures.gauge import Gauge
from dist_trainer.figures.metrics import ReducedStep
from dist_trainer.world import World
from tests.support.runs import lines


def data_of(run: Path) -> Data:
    config = load(run / "config.yaml")
    dataset = open_data(config)
    return build_data(config, dataset, run_state(config, dataset, World(0, 1, 0), None))


@pytest.fixture(params=["full", "ic_lora"])
def run(request: Any, finished_runs: Path) -> Path:
    return finished_runs / str(request.param)


def test_noise_levels_are_those_of_the_packs(run: Path) -> None:
    data = data_of(run)
    gauge = Gauge(data, None)
    with open_reader(load(run / "config.yaml"), data.dataset) as reader:
        load_pack = loader(reader, data.plan, data.dataset, data.feeding, pin=False)
        for micro in micro_steps(data.plan, data.dataset, data.feeding, World(0, 1, 0), 0, 2):
            fed = load_pack(micro)
            sigmas = gauge.sigmas(micro.step, micro.step.rows)
            assert fed.pack.sigmas.tolist() == sigmas[fed.pack.positions.numpy()].tolist()


def test_a_sample_in_place_of_a_damaged_one_has_a_noise_level_of_its_own(finished_runs: Path) -> None:
    from dist_trainer.feed import flow

    data = data_of(finished_runs / "full")
    step, manifest = data.plan.step(0), data.dataset.manifest
    rows = step.rows.copy()
    rows[2] = next(row for row in range(len(manifest)) if row not in step.rows)
    found, planned = (Gauge(data, None).sigmas(step, one) for one in (rows, step.rows))
    same = np.arange(len(rows)) != 2
    assert found[same].tolist() == planned[same].tolist()
    recipe, id = data.feeding.recipe, drawn_as(int(manifest.ids[step.rows[2]]), int(manifest.ids[rows[2]]))
    tokens = manifest.target_tokens(recipe.patch)[rows[2]]
    assert found[2] == flow.sigmas(recipe.seed, step.epochs[2], id, tokens, recipe.sampling)


@pytest.mark.parametrize("part", ["sigma", "length"])
def test_the_losses_of_all_bins_make_the_loss(run: Path, part: str) -> None:
    """Weighted by how many samples each holds, as every sample has the same share here."""
    data = data_of(run)
    records = lines(run / "metrics.jsonl")
    for record in records:
        step = data.plan.step(record["step"] - 1)
        sigmas, tokens = Gauge(data, None).sigmas(step, step.rows), data.plan.tokens[step.rows]
        total = 0.0
        for name, value in record.items():
            if not name.startswith(f"train/loss_{part}_"):
                continue
            bounds = name.rpartition("_")[2]
            if part == "sigma":
                low, high = (float(bound) for bound in bounds.split("-"))
                inside = (sigmas >= low) & (sigmas < high)
            else:
                inside = (tokens >= int(bounds)) & (tokens < 2 * int(bounds))
            assert inside.any(), name
            total += value * inside.sum() / len(step.rows)
        assert total == pytest.approx(record["train/loss"], rel=1e-9)


def test_where_tokens_weigh_a_samples_own_loss_is_shown_all_the_same(finished_runs: Path) -> None:
    config = load(finished_runs / "full" / "config.yaml", ["batching.loss_weighting=token"])
    dataset = open_data(config)
    data = build_data(config, dataset, run_state(config, dataset, World(0, 1, 0), None))
    micro = next(iter(micro_steps(data.plan, dataset, data.feeding, World(0, 1, 0), 0, 1)))
    assert micro.shares.sum() == pytest.approx(1.0)
    assert micro.shares.min() < micro.shares.max()
    count = len(micro.step.rows)
    reduced = ReducedStep(3.0 * micro.shares, np.ones(count), micro.step.rows, 0.0, 1.0, np.ones(1))
    figures = Gauge(data, None).figures(micro, reduced, 2.0)
    own = [value for name, value in figures.items() if name.startswith("train/loss_")]
    assert own == pytest.approx([3.0] * len(own))


def test_balance_is_measured_beside_what_was_planned(finished_runs: Path) -> None:
    data = data_of(finished_runs / "full")
    micro = next(iter(micro_steps(data.plan, data.dataset, data.feeding, World(0, 3, 0), 0, 1)))
    count = len(micro.step.rows)
    reduced = ReducedStep(
        np.ones(count), np.ones(count), micro.step.rows, 0.25, 2.0**30, np.array([1.0, 2.0, 3.0])
    )
    figures = Gauge(data, None).figures(micro, reduced, 4.0)
    assert figures["balance/measured"] == 1.5
    assert figures["time/forward_s"] == 3.0
    whole = micro.loads.sum(axis=0)
    assert figures["balance/planned"] == whole.max() / whole.mean()
    assert (figures["memory/peak_gib"], figures["time/data_wait_s"]) == (1.0, 0.25)


def test_a_cpu_has_no_utilization_and_the_time_computed_is_within_the_step(run: Path) -> None:
    for record in lines(run / "metrics.jsonl"):
        assert "speed/mfu" not in record
        assert 0 < record["time/forward_s"] < record["time/step_s"]
        assert record["balance/measured"] == 1.0
