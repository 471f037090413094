from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from dist_trainer.board.board import Board
from dist_trainer.board.dashboard import check_sinks, open_board, settings
from dist_trainer.build import build_data
from dist_trainer.config import RunConfig, dump
from dist_trainer.feed.data import run_state
from dist_trainer.model.engine import Engine
from dist_trainer.rundir import RunFolder
from dist_trainer.world import World
from shards.dataset.opened import Dataset
from shards.errors import InputError
from tests.support.curves import events, texts
from tests.support.runs import lora_blocks, tiny_config

ENGINE = cast("Engine", SimpleNamespace(shapes=lambda: {"a": (3, 4), "b": (5,)}, world=World(0, 8, 0)))


def board(model_folder: Path, dataset: Dataset, output: Path, **blocks: Any) -> tuple[RunConfig, Board]:
    config = RunConfig.model_validate(tiny_config(model_folder, dataset.root, output, **blocks))
    data = build_data(config, dataset, run_state(config, dataset, World(0, 8, 0), None))
    return config, open_board(config, RunFolder(output), 0, data, ENGINE)


def test_a_run_shows_from_its_start_what_it_is(
    model_folder: Path, paired_dataset: Dataset, tmp_path: Path
) -> None:
    blocks = lora_blocks(reference=True)
    config, shown = board(model_folder, paired_dataset, tmp_path, **blocks, seed=7)
    shown.close()
    folder = RunFolder(tmp_path).tensorboard
    assert texts(folder, "config") == [f"```yaml\n{dump(config)}\n```"]
    [card] = texts(folder, "model card")
    for said in (
        f"| base model | {model_folder} |",
        "IC-LoRA of rank 4, alpha 8, on ",
        ": 17 parameters |",
        f"{paired_dataset.root}: 30 samples to train, ",
        "each of 7 samples; 4.3 steps an epoch |",
        "| ranks | 8, ZeRO stage 3, fp32 |",
    ):
        assert said in card, card
    [histogram] = events(folder).Histograms("data/tokens")
    assert histogram.histogram_value.num == 30


def test_settings_without_a_value_are_not_compared(tmp_path: Path) -> None:
    found = settings(
        RunConfig.model_validate({"data": {"preprocessed_data_root": "d"}, "lora": {"rank": 16}})
    )
    assert found["lora_rank"] == 16
    assert found["learning_rate"] == 5e-4
    assert "ema_decay" not in found
    assert all(isinstance(value, (str, int, float)) for value in found.values())


def test_without_tensorboard_nothing_of_it_is_there(
    model_folder: Path, paired_dataset: Dataset, tmp_path: Path
) -> None:
    _, shown = board(model_folder, paired_dataset, tmp_path, tensorboard={"enabled": False})
    shown.close()
    assert not RunFolder(tmp_path).tensorboard.exists()


def test_wandb_that_is_not_installed_is_named_with_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = RunConfig.model_validate(
        {"data": {"preprocessed_data_root": "d"}, "lora": {}, "wandb": {"enabled": True}}
    )
    monkeypatch.setattr("dist_trainer.board.dashboard.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"^wandb\.enabled: .* `pip install wandb`"):
        check_sinks(config)
    monkeypatch.undo()
    monkeypatch.setattr("dist_trainer.board.dashboard.find_spec", lambda name: object())
    check_sinks(config)
