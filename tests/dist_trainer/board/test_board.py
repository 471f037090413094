from __future__ import annotations

import json
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.board import board as module
from dist_trainer.board.board import Board
from dist_trainer.board.tensorboard import TensorBoard
from dist_trainer.config import load
from dist_trainer.figures.metrics import StepMetrics
from dist_trainer.replaced import Replaced
from dist_trainer.rundir import RunFolder
from dist_trainer.skipped import LOSS, Skipped
from tests.support.curves import curve, events, texts
from tests.support.runs import lines, trained

# Everything the run promises to show.
PROMISED = {
    "train/loss",
    "train/learning_rate",
    "train/grad_norm",
    "speed/tokens_per_s",
    "speed/samples_per_s",
    "time/step_s",
    "time/data_wait_s",
    "pack/efficiency",
    "pack/balance",
    "memory/peak_gib",
}


def figures(step: int, launch: int = 0) -> dict[str, float]:
    """Figures that tell steps and launches apart; sums of powers of two, so float32 keeps them."""
    return {name: step + launch / 4 + place * 64 for place, name in enumerate(sorted(PROMISED))}


def launch(
    run: RunFolder, after: int, stop: int, number: int, interval: int = 1, enabled: bool = True
) -> Board:
    """A board that records steps `after` + 1 to `stop` of a run of 10 steps; not closed, as after a kill."""
    if run.tensorboard.exists():
        time.sleep(1.0)  # files of one second have no order
    sinks = [TensorBoard(run.tensorboard, after)] if enabled else []
    board = Board(run, after, sinks, interval, total_steps=10)
    board.text("config", f"launch: {number}\nseed: 42")
    for step in range(after + 1, stop + 1):
        board.step(StepMetrics(step, [0, 0], [step, step + 100], figures(step, number)))
    return board


def test_every_figure_of_every_step_is_a_point(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    launch(run, 0, 4, 0).close()
    assert set(events(run.tensorboard).Tags()["scalars"]) == PROMISED
    for name in PROMISED:
        assert curve(run.tensorboard, name) == [(step, figures(step)[name]) for step in range(1, 5)]
    assert lines(run.metrics) == [{"step": step, **figures(step)} for step in range(1, 5)]
    assert trained(tmp_path) == [
        {"step": step, "epochs": [0, 0], "ids": [step, step + 100]} for step in range(1, 5)
    ]


def test_the_config_is_shown_as_text(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    launch(run, 0, 1, 0).close()
    assert texts(run.tensorboard, "config") == ["launch: 0\nseed: 42"]


@pytest.mark.parametrize("killed", [True, False])
def test_steps_after_a_resume_are_not_doubled(tmp_path: Path, killed: bool) -> None:
    """The first launch got to step 7, the last checkpoint is of step 4: 5, 6, 7 are those of the second."""
    run = RunFolder(tmp_path)
    first = launch(run, 0, 7, 1)
    if not killed:
        first.close()
    launch(run, 4, 9, 2).close()
    expected = [(step, figures(step, 1 if step <= 4 else 2)) for step in range(1, 10)]
    for name in PROMISED:
        assert curve(run.tensorboard, name) == [(step, shown[name]) for step, shown in expected]
    assert lines(run.metrics) == [{"step": step, **shown} for step, shown in expected]
    assert [record["step"] for record in trained(tmp_path)] == list(range(1, 10))


def test_a_run_started_anew_in_its_folder_hides_the_steps_of_the_old_one(tmp_path: Path) -> None:
    """Killed before its first checkpoint: the second launch begins at step 1 again."""
    run = RunFolder(tmp_path)
    launch(run, 0, 3, 1)
    launch(run, 0, 2, 2).close()
    assert curve(run.tensorboard, "train/loss") == [(s, figures(s, 2)["train/loss"]) for s in (1, 2)]
    assert [record["step"] for record in lines(run.metrics)] == [1, 2]


def replaced(step: int, launch: int = 0) -> Replaced:
    return Replaced(
        step, 0, launch, "a", "shards/000000.tar", "checksum: expected 1, found 2", 7, "b", ("c",)
    )


def test_a_replaced_sample_is_a_line_a_word_and_a_point_whatever_the_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path)
    board = Board(run, 0, [TensorBoard(run.tensorboard, 0)], interval=4, total_steps=10)
    for step in range(1, 5):
        entries = [replaced(step)] if step == 2 else []
        figures = {"train/loss": 1.0, "data/replaced": float(len(entries))}
        shown = {"train/learning_rate": 1.0, "train/grad_norm": 1.0, "speed/tokens_per_s": 1.0}
        shown |= {"time/step_s": 1.0, "pack/efficiency": 1.0}
        board.step(StepMetrics(step, [0], [step], figures | shown, entries))
    board.close()
    assert curve(run.tensorboard, "data/replaced") == [(2, 1.0), (4, 0.0)]
    assert [step for step, _ in curve(run.tensorboard, "train/loss")] == [4]
    assert lines(run.replaced) == [
        {
            "step": 2,
            "epoch": 0,
            "id": 0,
            "key": "a",
            "shard": "shards/000000.tar",
            "wrong": "checksum: expected 1, found 2",
            "replacement_id": 7,
            "replacement_key": "b",
            "also_damaged": ["c"],
        }
    ]
    said = (
        "sample 'a' of shards/000000.tar is damaged (checksum: expected 1, found 2); trained 'b' in its place"
    )
    assert capsys.readouterr().out.splitlines()[0] == f"step 2: {said}"


def test_a_skipped_step_is_a_line_a_word_a_mark_and_points_whatever_the_interval(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder(tmp_path)
    board = Board(run, 0, [TensorBoard(run.tensorboard, 0)], interval=4, total_steps=10)
    for step in range(1, 5):
        skipped = Skipped(step, LOSS, [step], ["clip_a"]) if step == 2 else None
        odd = {"train/loss": float("nan"), "train/grad_norm": float("inf")} if skipped else {}
        shown = {**figures(step), **odd, "train/skipped": float(skipped is not None)}
        board.step(StepMetrics(step, [0], [step], shown, skipped=skipped))
    board.close()
    assert curve(run.tensorboard, "train/skipped") == [(2, 1.0), (4, 0.0)]
    assert lines(run.skipped) == [{"step": 2, "cause": "loss", "ids": [2], "keys": ["clip_a"]}]
    assert [record.get("skipped", False) for record in trained(tmp_path)] == [False, True, False, False]
    assert [record["train/loss"] is None for record in lines(run.metrics)] == [False, True, False, False]
    said = "step 2: skipped, as the loss of 'clip_a' is not finite; the weights stay as they were"
    assert capsys.readouterr().out.splitlines()[0] == said


def test_replaced_samples_of_steps_after_a_resume_are_not_doubled(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    for number, after, stop in ((1, 0, 7), (2, 4, 9)):
        board = Board(run, after, [], 1, total_steps=10)
        for step in range(after + 1, stop + 1):
            board.step(StepMetrics(step, [0], [step], figures(step), [replaced(step, number)]))
    expected = [(step, 1 if step <= 4 else 2) for step in range(1, 10)]
    assert [(record["step"], record["id"]) for record in lines(run.replaced)] == expected


def test_the_interval_thins_the_curves_but_keeps_the_last_step_and_all_lines(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    launch(run, 0, 10, 0, interval=4).close()
    assert [step for step, _ in curve(run.tensorboard, "train/loss")] == [4, 8, 10]
    assert [record["step"] for record in lines(run.metrics)] == list(range(1, 11))
    assert len(trained(tmp_path)) == 10


def test_only_what_is_new_is_brought_to_disk_and_only_when_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, synced = RunFolder(tmp_path), list[str]()
    board = launch(run, 0, 0, 0, enabled=False)
    monkeypatch.setattr("os.fsync", lambda number: synced.append(os.readlink(f"/proc/self/fd/{number}")))
    for step, entries in ((1, []), (2, []), (3, [replaced(3)])):
        board.step(StepMetrics(step, [0], [step], figures(step), entries))
        if step == 1:
            assert synced == []
        else:
            board.sync()
            board.sync()
    every_save = [str(run.metrics), str(run.trained)]
    assert synced == [*every_save, *every_save, str(run.replaced)]


def test_without_tensorboard_the_lines_are_still_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    launch(run, 0, 3, 0, enabled=False).close()
    assert not run.tensorboard.exists()
    assert [record["step"] for record in lines(run.metrics)] == [1, 2, 3]


def test_the_console_line_says_how_far_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    launch(RunFolder(tmp_path), 4, 5, 0).close()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == 1
    assert printed[0].startswith("[==========..........] step 5/10  loss ")
    for word in ("lr ", "norm ", "tokens/s", "s/step", "packing "):
        assert word in printed[0]


def plausible(name: str, value: float) -> bool:
    if name == "pack/efficiency":
        return 0 < value <= 1
    if name == "pack/balance":
        return value >= 1
    return value >= 0 if name in ("time/data_wait_s", "train/learning_rate") else value > 0


@pytest.mark.parametrize("name", ["full", "ic_lora"])
def test_a_real_run_shows_all_that_is_promised(finished_runs: Path, name: str) -> None:
    folder = RunFolder(finished_runs / name)
    assert set(events(folder.tensorboard).Tags()["scalars"]) >= PROMISED
    records: list[dict[str, Any]] = lines(folder.metrics)
    assert [record["step"] for record in records] == [1, 2]
    for figure in PROMISED:
        points = curve(folder.tensorboard, figure)
        assert [step for step, _ in points] == [1, 2]
        assert [value for _, value in points] == pytest.approx([record[figure] for record in records])
        assert all(plausible(figure, value) for _, value in points), (figure, points)
    [text] = texts(folder.tensorboard, "config")
    assert text == f"```yaml\n{folder.config.read_text()}\n```"
    assert load(folder.config).output_dir == folder.root


def test_the_figures_of_a_real_run_agree_with_each_other(finished_runs: Path) -> None:
    for record in lines(RunFolder(finished_runs / "full").metrics):
        assert record["speed/samples_per_s"] * record["time/step_s"] == pytest.approx(7)
        assert record["train/learning_rate"] == 0.01
        assert record["time/data_wait_s"] <= record["time/step_s"]
    assert json.loads((finished_runs / "full" / "state.json").read_text())["samples_per_step"] == 7


class Closed:
    """A sink that fails when it is closed, after `seconds`; it keeps whether the run had failed."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self.failed: bool | None = None

    def close(self, failed: bool) -> None:
        self.failed = failed
        time.sleep(self._seconds)
        raise RuntimeError("the service\nis gone")


def test_sinks_that_cannot_be_closed_hide_no_cause_and_share_one_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_CLOSE_S", 0.6)
    sinks: Any = [Closed(30.0), Closed(), Closed(30.0)]
    Board(RunFolder(tmp_path), 0, sinks, 1, total_steps=10).close()
    first, second, third = capsys.readouterr().out.splitlines()
    assert first == "warning: Closed: not closed: no answer within 0.2 seconds"
    assert second == "warning: Closed: not closed: the service is gone"
    assert float(third.split("no answer within ")[1].split()[0]) <= 0.4


@pytest.mark.parametrize("failed", [False, True])
def test_sinks_hear_whether_the_run_failed(tmp_path: Path, failed: bool) -> None:
    sinks: Any = [Closed(), Closed()]
    with suppress(KeyError), Board(RunFolder(tmp_path), 0, sinks, 1, total_steps=10):
        if failed:
            raise KeyError
    assert [sink.failed for sink in sinks] == [failed, failed]
