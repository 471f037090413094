from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_trainer.build import Data, build_data, run_state
from dist_trainer.config import RunConfig
from dist_trainer.feed import Fed, MicroStep, loader, micro_steps
from dist_trainer.world import World
from shards.dataset import Dataset
from shards.reader import Reader
from tests.support.runs import lora_blocks, tiny_config

STEPS = 6
RANKS = (1, 2, 3, 5, 12)


@pytest.fixture(scope="module", params=["random", "similar", "tokens"])
def data(request: pytest.FixtureRequest, model_folder: Path, paired_dataset: Dataset) -> Data:
    """IC-LoRA on the paired dataset: steps of 7 samples, or of about 300 tokens."""
    sizes = {
        "random": {"samples_per_step": 7, "max_tokens_per_pack": 100},
        "similar": {"samples_per_step": 7, "mix": "similar", "loss_weighting": "token"},
        "tokens": {"samples_per_step": None, "tokens_per_step": 300, "max_tokens_per_pack": 90},
    }
    blocks = {**lora_blocks(reference=True), "batching": sizes[request.param]}
    described = tiny_config(model_folder, paired_dataset.root, Path("run"), **blocks)
    config = RunConfig.model_validate(described)
    return build_data(config, paired_dataset, run_state(config, paired_dataset, World(0, 1, 0), None))


@pytest.fixture(scope="module")
def reader(data: Data) -> Iterator[Reader]:
    with Reader(data.dataset, threads=1) as opened:
        yield opened


def fed_to(data: Data, ranks: int, start: int = 0, stop: int = STEPS) -> list[list[MicroStep]]:
    """The micro-steps of every rank of a world."""
    return [
        list(micro_steps(data.plan, data.dataset, data.feeding, World(rank, ranks, rank), start, stop))
        for rank in range(ranks)
    ]


@pytest.mark.parametrize("ranks", RANKS)
def test_over_all_ranks_each_sample_of_a_step_comes_exactly_once(data: Data, ranks: int) -> None:
    world = fed_to(data, ranks)
    for k in range(STEPS):
        positions = [m.positions for own in world for m in own if m.step.index == k]
        assert sorted(np.concatenate(positions)) == list(range(len(data.plan.step(k).rows)))


@pytest.mark.parametrize("ranks", RANKS)
def test_every_rank_takes_as_many_micro_steps_as_the_others(data: Data, ranks: int) -> None:
    world = fed_to(data, ranks)
    walks = [[(m.step.index, m.index, m.last) for m in own] for own in world]
    assert all(walk == walks[0] for walk in walks)
    ends = [k for k, _, last in walks[0] if last]
    assert ends == list(range(STEPS))
    for before, after in pairwise(walks[0]):
        assert after[:2] == ((before[0] + 1, 0) if before[2] else (before[0], before[1] + 1))


@pytest.mark.parametrize("ranks", RANKS)
def test_no_pack_is_longer_than_the_cap(data: Data, ranks: int) -> None:
    for own in fed_to(data, ranks):
        for m in own:
            assert data.plan.tokens[m.step.rows[m.positions]].sum() <= data.feeding.cap


@pytest.mark.parametrize("ranks", RANKS)
def test_a_run_that_goes_on_from_a_step_is_fed_what_was_left(data: Data, ranks: int) -> None:
    for whole, rest in zip(fed_to(data, ranks), fed_to(data, ranks, start=4), strict=True):
        tail = [m for m in whole if m.step.index >= 4]
        assert len(rest) == len(tail)
        for a, b in zip(rest, tail, strict=True):
            assert (a.step.index, a.index, a.last) == (b.step.index, b.index, b.last)
            assert np.array_equal(a.positions, b.positions)
            assert np.array_equal(a.weights, b.weights)


def test_more_ranks_than_samples_leave_some_idle(data: Data, reader: Reader) -> None:
    load = loader(reader, data.feeding, pin=False)
    idle = [load(own[0]).pack for own in fed_to(data, 40, stop=1) if not len(own[0].positions)]
    assert len(idle) == 40 - min(40, len(data.plan.step(0).rows))
    for pack in idle:
        assert pack.weights.tolist() == [0.0]
        assert pack.positions.tolist() == [-1]
        assert pack.tokens.shape == (1, data.feeding.channels)


def packs_of(data: Data, reader: Reader, ranks: int) -> list[Fed]:
    load = loader(reader, data.feeding, pin=False)
    return [load(m) for own in fed_to(data, ranks) for m in own if len(m.positions)]


def test_a_pack_holds_the_samples_the_plan_says(data: Data, reader: Reader) -> None:
    for fed in packs_of(data, reader, 2):
        rows = fed.micro.step.rows[fed.micro.positions]
        assert list(fed.pack.keys) == list(data.dataset.manifest.keys[rows])
        assert fed.pack.positions.tolist() == fed.micro.positions.tolist()
        assert len(fed.pack.tokens) == data.plan.tokens[rows].sum()


def test_weights_known_from_the_manifest_fit_the_elements_that_are_loaded(data: Data, reader: Reader) -> None:
    """`sample`: the loss is the mean of the samples' means. `token`: the mean over all elements of the step."""
    for k in range(STEPS):
        packs = [fed.pack for fed in packs_of(data, reader, 3) if fed.micro.step.index == k]
        elements = torch.cat([pack.elements for pack in packs]).double()
        weights = torch.cat([pack.weights for pack in packs]).double()
        expected = (
            1 / (elements * len(elements))
            if data.feeding.weighting == "sample"
            else torch.full_like(elements, 1 / float(elements.sum()))
        )
        torch.testing.assert_close(weights, expected, rtol=1e-6, atol=0)


def drawn(feds: list[Fed]) -> dict[tuple[int, int], tuple[float, torch.Tensor, float]]:
    """Sigma, velocity and weight of each (step, position)."""
    found = {}
    for fed in feds:
        pack, begin = fed.pack, 0
        for i, length in enumerate(pack.loss_lengths.tolist()):
            place = (fed.micro.step.index, int(pack.positions[i]))
            found[place] = (
                float(pack.sigmas[i]),
                pack.target[begin : begin + length],
                float(pack.weights[i]),
            )
            begin += length
    return found


@pytest.mark.parametrize("ranks", [2, 5])
def test_a_sample_is_drawn_alike_on_any_number_of_ranks(data: Data, reader: Reader, ranks: int) -> None:
    alone, together = drawn(packs_of(data, reader, 1)), drawn(packs_of(data, reader, ranks))
    assert alone.keys() == together.keys()
    for place, (sigma, target, weight) in alone.items():
        assert together[place][0] == sigma
        assert torch.equal(together[place][1], target)
        assert together[place][2] == weight


def test_a_sample_is_drawn_otherwise_in_another_epoch(data: Data, reader: Reader) -> None:
    sigmas: dict[int, dict[int, float]] = {}
    for (k, position), (sigma, _, _) in drawn(packs_of(data, reader, 1)).items():
        step = data.plan.step(k)
        sigmas.setdefault(int(step.rows[position]), {})[int(step.epochs[position])] = sigma
    again = [list(by_epoch.values()) for by_epoch in sigmas.values() if len(by_epoch) > 1]
    assert again
    assert all(len(set(values)) == len(values) for values in again)


def test_another_seed_draws_otherwise(data: Data, reader: Reader) -> None:
    other = replace(data.feeding, recipe=replace(data.feeding.recipe, seed=43))
    before = drawn(packs_of(data, reader, 1))
    after = drawn(packs_of(replace(data, feeding=other), reader, 1))
    assert all(after[place][0] != sigma for place, (sigma, _, _) in before.items())
