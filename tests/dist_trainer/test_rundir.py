from __future__ import annotations

import fcntl
import threading
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dist_trainer.logs import append
from dist_trainer.rundir import RunFolder, RunState, StillHeld
from shards.dataset.opened import Dataset
from shards.errors import InputError
from tests.support.bench import Bench, assert_refused

STATE = RunState(
    seed=42,
    samples_per_step=8,
    tokens_per_step=None,
    mix="random",
    loss_weighting="sample",
    dataset="0123abcd",
    model_source="LTXV_2B_0.9.5",
    training_mode="lora",
    conditioning_mode="none",
    first_frame_conditioning_p=0.1,
    sampling="shifted_logit_normal {}",
    causal_positions=False,
    optimizer="adamw",
    lora_alpha=64,
    version="0.1.0",
)
OTHER: dict[str, Any] = {
    "first_frame_conditioning_p": 0.5,
    "sampling": "uniform {}",
    "causal_positions": True,
    "optimizer": "sgd",
    "lora_alpha": 32,
    "seed": 43,
    "samples_per_step": 16,
    "tokens_per_step": 1000,
    "mix": "similar",
    "loss_weighting": "token",
    "dataset": "ffff0000",
    "model_source": "another",
    "training_mode": "full",
    "conditioning_mode": "reference_video",
    "holdout": 0.1,
    "load_checkpoint": "somebody.safetensors",
    "started_from": {"kind": "adapter", "place": "/models/somebody.safetensors"},
}


def test_a_new_folder_has_no_state(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "run").read_state() is None


def test_what_a_run_fixed_is_read_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "deep" / "run")
    run.begin(STATE, "seed: 42\n")
    assert run.read_state() == STATE
    assert run.config.read_text() == "seed: 42\n"
    run.check_same(STATE, STATE)


def test_a_run_that_begins_again_has_the_config_of_now(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.begin(STATE, "old\n")
    (run.checkpoints / "step_000001").mkdir()
    run.begin(STATE, "new\n")
    assert run.config.read_text() == "new\n"
    assert (run.checkpoints / "step_000001").is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoints",
        "config.yaml",
        "logs",
        "state.json",
    ]


@pytest.mark.parametrize("content", ["{", "[]", "null", '{"seed": 1}', '{"wrong": 1}'])
def test_a_state_that_cannot_be_read_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(InputError, match=r"state\.json: not a run's state .*another output_dir"):
        RunFolder(tmp_path).read_state()


def test_the_table_of_other_values_has_every_setting() -> None:
    assert {field.name for field in fields(RunState)} == {*OTHER, "version"}


@given(st.sets(st.sampled_from(sorted(OTHER)), min_size=1))
def test_each_setting_that_differs_is_named_and_no_other(differing: set[str]) -> None:
    now = replace(STATE, **{name: OTHER[name] for name in differing})
    with pytest.raises(InputError) as caught:
        RunFolder(Path("runs/x")).check_same(STATE, now)
    message = str(caught.value)
    assert "runs/x" in message
    for name in OTHER:
        told = f"{name}: was {getattr(STATE, name)!r}, now {OTHER[name]!r}" in message
        assert told == (name in differing)


def test_another_version_of_the_trainer_may_resume(tmp_path: Path) -> None:
    RunFolder(tmp_path).check_same(STATE, replace(STATE, version="9.9.9"))


def test_a_model_s_folder_may_be_written_in_another_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path)
    before = replace(STATE, model_source=str(tmp_path / "model"))
    RunFolder(tmp_path).check_same(before, replace(STATE, model_source="model"))
    with pytest.raises(InputError, match="model_source: was"):
        RunFolder(tmp_path).check_same(before, replace(STATE, model_source="other"))


def test_a_folder_is_held_by_one_launch_at_a_time(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.hold(), pytest.raises(InputError, match="another launch"), folder.hold():
        pass
    with folder.hold():
        pass


def test_that_another_launch_trains_in_a_folder_is_heard_before_a_hub_is_asked(
    tmp_path: Path, model_folder: Path, paired_dataset: Dataset
) -> None:
    bench = Bench(tmp_path, model_folder, paired_dataset)
    with RunFolder(bench.output).hold():
        ended = bench.run(blocks={"model": {"model_source": "nobody/nothing"}})
    assert_refused(ended, "another launch is training in this folder")


def test_who_looks_for_a_moment_whether_a_folder_is_held_ends_no_launch(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    looking = (tmp_path / ".lock").open("w")
    fcntl.flock(looking, fcntl.LOCK_SH)
    threading.Timer(0.3, looking.close).start()
    with folder.hold():
        assert looking.closed


def test_a_start_after_another_waits_for_the_process_that_is_not_dead_yet(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = RunFolder(tmp_path)
    dying = (tmp_path / ".lock").open("w")
    fcntl.flock(dying, fcntl.LOCK_EX)
    with (
        pytest.raises(StillHeld, match="a process of an earlier start, or another launch"),
        folder.hold(follows=True, dying_s=0.1),
    ):
        pass
    threading.Timer(1.5, dying.close).start()
    with folder.hold(follows=True):
        assert dying.closed
    [first, second] = capsys.readouterr().out.splitlines()
    assert "a process of an earlier start still holds this folder; waiting 0.1 s" in first
    assert second.endswith("waiting 120 s for it to end")


def test_a_start_follows_another_where_slurm_or_the_log_of_jobs_knows_of_one(tmp_path: Path) -> None:
    folder, job = RunFolder(tmp_path), {"SLURM_JOB_ID": "8"}
    append(folder.jobs, {"event": "began", "job": "8", "restart": 0})
    assert not folder.follows(job)
    assert folder.follows(job | {"SLURM_RESTART_COUNT": "1"})
    append(folder.jobs, {"event": "began", "job": "7", "restart": 0})
    assert folder.follows(job)
    assert not folder.follows({}), "outside Slurm nobody starts it again"


def test_a_folder_that_another_host_has_made_may_appear_late(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    assert not folder.appears(0.0)
    threading.Timer(0.5, folder.begin, (STATE, "seed: 42\n")).start()
    assert folder.appears()
