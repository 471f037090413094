from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from dist_trainer.build import Data, build_data
from dist_trainer.config import RunConfig
from dist_trainer.feed import flow
from dist_trainer.feed.data import run_state
from dist_trainer.feed.feed import Fed, MicroStep, loader, micro_steps
from dist_trainer.feed.substitute import ATTEMPTS, drawn_as, substitutes
from dist_trainer.world import World
from shards.dataset.opened import Dataset, open_dataset
from shards.errors import ShardError
from shards.reader import Reader
from tests.support.damage import flip
from tests.support.datasets import write_dataset
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
    load = loader(reader, data.plan, data.dataset, data.feeding, pin=False)
    idle = [load(own[0]).pack for own in fed_to(data, 40, stop=1) if not len(own[0].positions)]
    assert len(idle) == 40 - min(40, len(data.plan.step(0).rows))
    for pack in idle:
        assert pack.weights.tolist() == [0.0]
        assert pack.positions.tolist() == [-1]
        assert pack.tokens.shape == (1, data.feeding.channels)


def packs_of(data: Data, reader: Reader, ranks: int) -> list[Fed]:
    load = loader(reader, data.plan, data.dataset, data.feeding, pin=False)
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


@pytest.fixture
def damaged(data: Data, tmp_path: Path) -> Iterator[tuple[Data, set[int], Reader]]:
    """The data with five samples damaged: one of each size, and the first to be tried for one of them."""
    root = Path(shutil.copytree(data.dataset.root, tmp_path / "data"))
    manifest = data.dataset.manifest
    rows = {
        int(np.flatnonzero((manifest.grid == grid).all(axis=1))[0])
        for grid in np.unique(manifest.grid, axis=0)
    }
    rows.add(int(substitutes(manifest, data.plan.tokens, data.plan.seed, 0, min(rows))[0]))
    for row in rows:
        flip(root, row)
    copied = replace(data, dataset=open_dataset(root))
    with Reader(copied.dataset, threads=1) as opened:
        yield copied, rows, opened


def expected_row(data: Data, rows: set[int], row: int, epoch: int) -> int:
    """The manifest row trained where `row` is planned, when `rows` are damaged."""
    order = [row, *substitutes(data.dataset.manifest, data.plan.tokens, data.plan.seed, epoch, row).tolist()]
    return next(other for other in order if other not in rows)


def test_a_damaged_sample_is_replaced_by_the_first_sound_one_of_its_size(
    damaged: tuple[Data, set[int], Reader],
) -> None:
    data, rows, reader = damaged
    seen = set()
    for fed in packs_of(data, reader, 2):
        planned, epochs = (
            column[fed.micro.positions] for column in (fed.micro.step.rows, fed.micro.step.epochs)
        )
        chosen = [expected_row(data, rows, int(r), int(e)) for r, e in zip(planned, epochs, strict=True)]
        assert fed.rows.tolist() == chosen
        assert list(fed.pack.keys) == list(data.dataset.manifest.keys[chosen])
        assert list(fed.pack.lengths.values) == data.plan.tokens[planned].tolist(), "as planned"
        assert set(planned.tolist()) & rows <= set(fed.damaged) <= rows
        seen |= set(fed.damaged)
    assert seen == rows


@pytest.mark.parametrize("ranks", [2, 5])
def test_a_replacement_is_drawn_alike_on_any_number_of_ranks(
    damaged: tuple[Data, set[int], Reader], ranks: int
) -> None:
    data, _, reader = damaged
    alone, together = drawn(packs_of(data, reader, 1)), drawn(packs_of(data, reader, ranks))
    for place, (sigma, target, weight) in alone.items():
        assert together[place][0] == sigma
        assert torch.equal(together[place][1], target)
        assert together[place][2] == weight


def test_everything_else_of_a_step_stays_as_it_was(data: Data, reader: Reader, damaged: tuple) -> None:
    broken, rows, other = damaged
    before, after = drawn(packs_of(data, reader, 1)), drawn(packs_of(broken, other, 1))
    assert before.keys() == after.keys()
    for (k, position), (sigma, target, weight) in before.items():
        found = after[k, position]
        # Same coin and size, so the same elements: weights do not move, of the replacement either.
        assert found[2] == weight
        assert found[1].shape == target.shape
        replaced = int(data.plan.step(k).rows[position]) in rows
        assert (found[0] == sigma and torch.equal(found[1], target)) is not replaced


def test_a_replacement_is_not_noised_as_where_it_is_trained_for_itself(
    damaged: tuple[Data, set[int], Reader],
) -> None:
    data, rows, reader = damaged
    ids, recipe = data.dataset.manifest.ids, data.feeding.recipe
    sigmas = {place: sigma for place, (sigma, _, _) in drawn(packs_of(data, reader, 1)).items()}
    checked = 0
    for (k, position), sigma in sigmas.items():
        step = data.plan.step(k)
        row, epoch = int(step.rows[position]), int(step.epochs[position])
        if row not in rows:
            continue
        other = expected_row(data, rows, row, epoch)
        size = data.dataset.manifest.target_tokens()[other]
        own, mixed = (
            flow.sigmas(recipe.seed, [epoch], [identity], [size], recipe.sampling)[0]
            for identity in (ids[other], drawn_as(int(ids[row]), int(ids[other])))
        )
        assert sigma == mixed != own
        checked += 1
    assert checked


@pytest.mark.parametrize("weighting", ["sample", "token"])
def test_a_replacement_of_another_size_takes_the_damaged_ones_share_of_the_loss(
    model_folder: Path, tmp_path: Path, weighting: str
) -> None:
    """Both samples of the largest size are damaged: the weights of all elements still sum to one."""
    grids = ((3, 4, 4), (2, 4, 4), (1, 4, 4))
    dataset = write_dataset(tmp_path / "data", 6, channels=8, text_width=48, grids=grids)
    blocks = {
        "batching": {"samples_per_step": 6, "loss_weighting": weighting},
        "conditioning": {"first_frame_conditioning_p": 0.5},
    }
    config = RunConfig.model_validate(tiny_config(model_folder, dataset.root, Path("run"), **blocks))
    data = build_data(config, dataset, run_state(config, dataset, World(0, 1, 0), None))

    def shares() -> list[float]:
        with Reader(dataset, threads=1) as reader:
            packs = [fed.pack for fed in packs_of(data, reader, 2)]
        return [float(share) for pack in packs for share in (pack.weights.double() * pack.elements)]

    before = shares()
    for row in (0, 3):
        flip(Path(dataset.root), row)
    with Reader(dataset, threads=1) as reader:
        trained = {row for fed in packs_of(data, reader, 2) for row in fed.rows.tolist()}
    assert trained == {1, 2, 4, 5}
    assert shares() == pytest.approx(before, rel=1e-6)
    assert sum(before) == pytest.approx(STEPS)


def test_no_larger_sample_is_put_into_a_pack_that_may_be_full(model_folder: Path, tmp_path: Path) -> None:
    """Where no other sample is as small as the damaged one, the run stops and says what to do."""
    grids = ((2, 4, 4), (1, 4, 4), (3, 4, 4))
    dataset = write_dataset(tmp_path / "data", 3, channels=8, text_width=48, grids=grids)
    root = Path(dataset.root)
    config = RunConfig.model_validate(tiny_config(model_folder, root, Path("run")))
    data = build_data(config, dataset, run_state(config, dataset, World(0, 1, 0), None))
    flip(root, 1)
    with Reader(dataset, threads=1) as reader, pytest.raises(ShardError) as caught:
        packs_of(data, reader, 1)
    sums = re.search(r"checksum differs \((\w{16}), (\w{16})\)", str(caught.value))
    assert sums
    assert str(caught.value) == (
        f"shards/000000.tar: sample 'clips/sample_00001': xxh3_64 checksum differs ({sums[1]}, {sums[2]}), and of "
        "the samples to train in its place: expected a sound one, found none: no other sample has as few tokens; put "
        f"back shards/000000.tar from a copy and start again, or run `ltx-shards doctor {root} --repair` and train "
        "what is left in another output_dir"
    )


def test_where_all_substitutes_are_damaged_they_are_named(data: Data, tmp_path: Path) -> None:
    root, manifest = Path(shutil.copytree(data.dataset.root, tmp_path / "data")), data.dataset.manifest
    for row in range(len(manifest)):
        flip(root, row)
    broken = replace(data, dataset=open_dataset(root))
    with Reader(broken.dataset, threads=1) as reader, pytest.raises(ShardError) as caught:
        packs_of(broken, reader, 1)
    tried = re.search(r"damage in all (\d+) tried \((.*?)\); (.*)", str(caught.value))
    assert tried
    assert int(tried[1]) == len(tried[2].split(", ")) <= ATTEMPTS
    assert tried[3] == (
        f"`ltx-shards doctor {root}` says whether the shards are damaged or the manifest is of other ones"
    )


def test_a_shard_that_is_not_there_is_not_taken_for_damage(data: Data, tmp_path: Path) -> None:
    root = Path(shutil.copytree(data.dataset.root, tmp_path / "data"))
    shutil.rmtree(root / "shards")
    broken = replace(data, dataset=open_dataset(root))
    with Reader(broken.dataset, threads=1) as reader, pytest.raises(ShardError, match="No such file"):
        packs_of(broken, reader, 1)
