from __future__ import annotations

import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from dist_trainer import run as module
from dist_trainer.build import build_data
from dist_trainer.config import RunConfig
from dist_trainer.feed.data import run_state
from dist_trainer.feed.feed import MicroStep
from dist_trainer.world import World
from shards.dataset.opened import Dataset
from tests.support.runs import tiny_config


def test_a_run_that_fails_does_not_wait_for_loads_that_never_end(
    model_folder: Path, paired_dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RunConfig.model_validate(tiny_config(model_folder, paired_dataset.root, tmp_path))
    world = World(0, 1, 0)
    data = build_data(config, paired_dataset, run_state(config, paired_dataset, world, None))
    hangs, answers, ended = threading.Event(), threading.Event(), list[bool]()

    def load(micro: MicroStep) -> int:
        if (micro.step.index, micro.index) > (0, 0):
            hangs.set()
            ended.append(answers.wait(5))
        return micro.index

    def fail() -> None:
        with ExitStack() as stack:
            assert next(module.open_feed(config, data, world, 0, stack)) == 0
            assert hangs.wait(60)
            raise KeyError("the cause")

    monkeypatch.setattr(module, "loader", lambda *_, **__: load)
    monkeypatch.setattr(module, "_CLOSE_S", 0.1)
    with pytest.raises(KeyError, match="the cause"):
        fail()
    assert not ended, "it was not waited for"
    answers.set()
