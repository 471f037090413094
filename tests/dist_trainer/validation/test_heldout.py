"""What is measured, with a model that predicts nothing: then a loss is the mean square of what it had to predict."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from dist_trainer.feed.conditioning import Recipe
from dist_trainer.feed.feed import Feeding
from dist_trainer.model.attention import Lengths
from dist_trainer.model.engine import Engine
from dist_trainer.validation.heldout import Heldout
from dist_trainer.validation.rounds import SIGMAS
from dist_trainer.world import World
from shards.dataset.opened import Dataset, open_dataset
from shards.geometry import Patch
from shards.reader import Reader
from tests.support.damage import flip
from tests.support.datasets import SCALE, write_dataset

ALONE = World(0, 1, 0)
CHANNELS, WIDTH = 4, 16
LOSSES = {"heldout/loss", *(f"heldout/loss_sigma_{sigma}" for sigma in SIGMAS)}

pytestmark = pytest.mark.usefixtures("alone")


class Silent:
    """An engine whose model predicts zeros and remembers what it saw."""

    def __init__(self) -> None:
        self.evaluates = False
        self.seen: list[tuple[int, int]] = []
        self.tokens: list[torch.Tensor] = []

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        self.evaluates = True
        yield
        self.evaluates = False

    def forward(
        self, tokens: Any, text: Any, times: Any, index: Any, coords: Any, lengths: Lengths, *_: Any
    ) -> Any:
        assert self.evaluates
        self.tokens += tokens.split(lengths.values)
        self.seen += [
            (length, int(times[part].max()))
            for length, part in zip(lengths.values, index.split(lengths.values), strict=True)
        ]
        return torch.zeros_like(tokens)


def feeding(mode: str = "none", cap: int = 200) -> Feeding:
    recipe = Recipe(SCALE, Patch(), mode=cast("Any", mode), seed=11)
    return Feeding(recipe, cap, 1e-3, CHANNELS, WIDTH, "sample")


def measure(dataset: Dataset, engine: Silent, mode: str = "none", cap: int = 200) -> dict[str, float]:
    with Reader(dataset, threads=1) as reader:
        heldout = Heldout(dataset, reader, feeding(mode, cap), ALONE)
        found = heldout.figures(cast("Engine", engine), torch.float32, "heldout", lambda: True)
    assert found is not None
    return found


def test_the_loss_is_the_mean_over_samples_at_each_fixed_noise_level(tmp_path: Path) -> None:
    dataset, engine = write_dataset(tmp_path, 6), Silent()
    found = measure(dataset, engine)
    assert set(found) == LOSSES
    assert found["heldout/loss"] == pytest.approx(np.mean([found[f"heldout/loss_sigma_{s}"] for s in SIGMAS]))
    # Noise and latents are independent, each of variance one.
    assert found["heldout/loss"] == pytest.approx(2.0, rel=0.2)
    assert sorted({time for _, time in engine.seen}) == [125, 375, 625, 875]
    assert len(engine.seen) == 6 * len(SIGMAS)


def test_the_noise_is_always_the_same_and_of_sample_level_and_seed_alone(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 6)
    first, engine = Silent(), Silent()
    whole = measure(dataset, first)
    assert measure(dataset, engine, cap=20) == pytest.approx(whole, rel=1e-6)
    assert {tuple(one.flatten().tolist()) for one in engine.tokens} == {
        tuple(one.flatten().tolist()) for one in first.tokens
    }
    with Reader(dataset, threads=1) as reader:
        base = feeding()
        other = Heldout(dataset, reader, replace(base, recipe=replace(base.recipe, seed=12)), ALONE)
        found = other.figures(cast("Engine", Silent()), torch.float32, "heldout", lambda: True)
    assert found is not None
    assert found["heldout/loss"] != pytest.approx(whole["heldout/loss"], rel=1e-6)


def test_an_ic_lora_is_measured_with_true_shuffled_and_absent_references(tmp_path: Path) -> None:
    grid = (2, 4, 4)
    dataset, engine = write_dataset(tmp_path, 3, grids=[grid], references=[grid]), Silent()
    found = measure(dataset, engine, "reference_video")
    kinds = {f"heldout/reference_{kind}" for kind in ("true", "shuffled", "absent")}
    assert set(found) == LOSSES | kinds
    assert {round(found[kind], 6) for kind in kinds} == {round(found["heldout/loss"], 6)}
    # This model predicts nothing, so that all are alike; but it was shown 32 or 64 tokens.
    assert [length for length, _ in engine.seen].count(64) == 2 * 3 * len(SIGMAS)
    assert [length for length, _ in engine.seen].count(32) == 3 * len(SIGMAS)


def test_a_shuffled_reference_is_that_of_another_sample_and_the_rest_stays(tmp_path: Path) -> None:
    grid = (1, 2, 2)
    dataset, engine = write_dataset(tmp_path, 2, grids=[grid], references=[grid]), Silent()
    measure(dataset, engine, "reference_video")
    shown = [one for one in engine.tokens if len(one) == 8]
    true, shuffled = shown[: len(shown) // 2], shown[len(shown) // 2 :]
    references = [{tuple(one[:4].flatten().tolist()) for one in half} for half in (true, shuffled)]
    assert references[0] == references[1]
    assert len(references[0]) == 2
    pairs = [
        {(tuple(one[:4].flatten().tolist()), tuple(one[4:].flatten().tolist())) for one in half}
        for half in (true, shuffled)
    ]
    assert not pairs[0] & pairs[1]
    assert {target for _, target in pairs[0]} == {target for _, target in pairs[1]}


def test_where_no_two_references_are_of_one_size_there_is_no_shuffled_figure(tmp_path: Path) -> None:
    sizes = [(1, 2, 2), (1, 4, 4)]
    dataset = write_dataset(tmp_path, 2, grids=sizes, references=sizes)
    found = measure(dataset, Silent(), "reference_video")
    assert set(found) == LOSSES | {"heldout/reference_true", "heldout/reference_absent"}


def test_a_damaged_sample_is_named_and_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_dataset(tmp_path / "whole", 5)
    shutil.copytree(tmp_path / "whole", tmp_path / "damaged")
    flip(tmp_path / "damaged", 2)
    dataset = open_dataset(tmp_path / "damaged")
    engine = Silent()
    found = measure(dataset, engine)
    assert len(engine.seen) == 4 * len(SIGMAS)
    assert found["heldout/loss"] == pytest.approx(2.0, rel=0.3)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("damaged, rank 0, not measured: ")
    assert "sample_00002" in line


def test_it_ends_where_it_is_told_to(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, 5)
    with Reader(dataset, threads=1) as reader:
        heldout = Heldout(dataset, reader, feeding(), ALONE)
        assert heldout.figures(cast("Engine", Silent()), torch.float32, "heldout", lambda: False) is None
