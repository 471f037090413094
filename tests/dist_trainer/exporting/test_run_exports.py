from __future__ import annotations

import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dist_trainer import stop
from dist_trainer.config import RunConfig, load
from dist_trainer.exporting import run_exports
from dist_trainer.model.family import LORA_FILE
from dist_trainer.run import finish
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import Requests, Wish
from shards.dataset.opened import Dataset
from tests.support.forked import train
from tests.support.gatherings import at_once, in_memory
from tests.support.runs import lora_blocks, tiny_config, write_config


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*.safetensors")}


def without_exports(run: Path, folder: Path) -> Path:
    """A copy of a run that has exported nothing."""
    return Path(shutil.copytree(run, folder / "run", ignore=shutil.ignore_patterns("exports")))


def test_each_checkpoint_is_exported_where_that_is_asked_for(
    model_folder: Path, paired_dataset: Dataset, tmp_path: Path
) -> None:
    """On two ranks; the last step gets what a run's end exports, and exports outlive their checkpoints."""
    run = tmp_path / "run"
    blocks = {**lora_blocks(), "checkpoints": {"interval": 1, "keep_last_n": 1, "export": "comfyui"}}
    config = tiny_config(model_folder, paired_dataset.root, run, optimization={"steps": 3}, **blocks)
    train(2, write_config(tmp_path / "config.yaml", config), logs=tmp_path / "logs")
    for step in (1, 2):
        assert files(run / "exports" / f"step_{step:06d}") == {f"comfyui/run_step_{step:06d}.safetensors"}
    last = {LORA_FILE, "comfyui/run_step_000003.safetensors"}
    assert files(run / "exports" / "step_000003") == last
    assert [path.name for path in (run / "checkpoints").glob("step_*")] == ["step_000003"]
    first, second = (
        load_file(run / "exports" / f"step_{step:06d}" / f"comfyui/run_step_{step:06d}.safetensors")
        for step in (1, 2)
    )
    assert any(not torch.equal(value, second[key]) for key, value in first.items())


def test_an_export_that_fails_on_the_way_is_said_and_the_run_goes_on(
    finished_runs: Path,
    model_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", "/exports/file")

    monkeypatch.setattr(run_exports, "export", full)
    run = finished_runs / "ic_lora"
    blocks = {**lora_blocks(reference=True), "checkpoints": {"export": "both"}}
    config = RunConfig.model_validate(tiny_config(model_folder, Path("data"), run, **blocks))
    asked = Requests(tmp_path, is_main=True)
    results = at_once(
        lambda gathering: run_exports.export_saved(config, RunFolder(run), 1, asked, gathering), in_memory(2)
    )
    assert results == [Wish.NONE, Wish.NONE]
    assert f"`ltx-train export {run} --step 1` does it again" in capsys.readouterr().out
    with pytest.raises(OSError, match="No space left"):
        run_exports.export_end(config, RunFolder(run), asked)


def test_a_run_goes_on_with_the_export_of_its_checkpoint_where_that_lacks_what_is_asked_for(
    finished_runs: Path, tmp_path: Path
) -> None:
    run = without_exports(finished_runs / "full", tmp_path)
    asked = Requests(tmp_path, is_main=True)

    def exported(step: int, formats: str) -> set[str]:
        config = load(run / "config.yaml", [f"checkpoints.export={formats}"])
        results = at_once(
            lambda gathering: run_exports.export_resumed(config, RunFolder(run), step, asked, gathering),
            in_memory(2),
        )
        assert results == [Wish.NONE, Wish.NONE]
        return files(run / "exports")

    assert [exported(0, "both"), exported(1, "none"), exported(2, "both")] == [set()] * 3
    comfyui = "step_000001/comfyui/run_step_000001.safetensors"
    assert exported(1, "comfyui") == {comfyui}
    written = (run / "exports" / comfyui).stat().st_mtime_ns
    assert exported(1, "comfyui") == {comfyui}
    assert (run / "exports" / comfyui).stat().st_mtime_ns == written, "what is there is not made again"
    assert len(exported(1, "both")) == 2
    written = (run / "exports" / comfyui).stat().st_mtime_ns
    saved_again(run, 1)
    exported(1, "comfyui")
    assert (run / "exports" / comfyui).stat().st_mtime_ns > written, "it is of a checkpoint that is gone"


def saved_again(run: Path, step: int) -> None:
    """Let a checkpoint be newer than all that was made of the one before it with its name."""
    later = time.time() + 60
    os.utime(run / "checkpoints" / f"step_{step:06d}" / "checkpoint.json", (later, later))


def test_a_run_that_comes_back_tries_an_export_once_and_then_trains(
    finished_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = without_exports(finished_runs / "full", tmp_path)
    config = load(run / "config.yaml", ["checkpoints.export=both"])
    monkeypatch.setattr(stop, "_PATIENCE_S", 0.0)
    asked = Requests(tmp_path, is_main=True, ends_at=time.time())
    asked.saved(1.0)
    by_hand = f"`ltx-train export {run} --step 1` does it again"

    def resumed(requests: Requests) -> tuple[list[Wish | Exception], str]:
        wishes = at_once(
            lambda gathering: run_exports.export_resumed(config, RunFolder(run), 1, requests, gathering),
            in_memory(2),
        )
        return wishes, capsys.readouterr().out

    wishes, said = resumed(asked)
    assert wishes == [Wish.COME_BACK] * 2
    assert said.startswith("export of step 1 is left unfinished: ")
    assert by_hand in said
    for _ in range(2):
        wishes, said = resumed(asked)
        assert wishes == [Wish.NONE] * 2
        assert said.startswith("export of step 1 was not done ")
        assert by_hand in said
    assert not files(run / "exports")
    # Another checkpoint of that step has not been tried.
    saved_again(run, 1)
    wishes, said = resumed(Requests(tmp_path, is_main=True))
    assert (wishes, said) == ([Wish.NONE] * 2, "")
    assert len(files(run / "exports")) == 2
    assert [path.name for path in (run / "exports").iterdir()] == ["step_000001"]


def test_an_export_that_a_run_came_back_for_and_that_failed_is_tried_again(
    finished_runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = shutil.ignore_patterns("exports")
    run = Path(shutil.copytree(finished_runs / "full", tmp_path / "run", ignore=left))
    config = load(run / "config.yaml", ["checkpoints.export=both"])
    tried: list[int] = []

    def full(_: Path, step: int, *__: object) -> None:
        tried.append(step)
        raise OSError(28, "No space left on device", "/exports/file")

    monkeypatch.setattr(run_exports, "export", full)
    asked = Requests(tmp_path, is_main=True)
    for _ in range(2):
        run_exports.export_resumed(config, RunFolder(run), 1, asked, in_memory(1)[0])
    assert tried == [1, 1]


def test_an_export_on_the_way_does_not_hold_up_a_stop(
    finished_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = without_exports(finished_runs / "full", tmp_path)
    config = load(run / "config.yaml", ["checkpoints.export=both"])
    asked = Requests(tmp_path, is_main=True)

    def exported() -> list[Wish]:
        return at_once(
            lambda gathering: run_exports.export_saved(config, RunFolder(run), 1, asked, gathering),
            in_memory(2),
        )

    (tmp_path / "STOP").touch()
    assert exported() == [Wish.NONE, Wish.NONE], "one that is soon done is waited for"
    shutil.rmtree(run / "exports")
    monkeypatch.setattr(stop, "_PATIENCE_S", 0.0)
    assert exported() == [Wish.STOP, Wish.STOP]
    assert not list((run / "exports").iterdir())
    assert "export of step 1 is left unfinished: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wish", "steps", "exported"), [(Wish.STOP, 2, True), (Wish.STOP, 3, False), (Wish.COME_BACK, 2, False)]
)
def test_a_run_stopped_for_good_in_a_look_after_its_last_step_is_exported_but_not_done(
    finished_runs: Path, tmp_path: Path, wish: Wish, steps: int, exported: bool
) -> None:
    left = shutil.ignore_patterns("exports", "DONE")
    folder = RunFolder(Path(shutil.copytree(finished_runs / "full", tmp_path / "run", ignore=left)))
    config = load(folder.config, [f"optimization.steps={steps}"])
    asked = Requests(tmp_path, is_main=True)
    assert (
        at_once(lambda gathering: finish(config, folder, wish, asked, gathering), in_memory(2)) == [wish] * 2
    )
    assert bool(files(folder.root / "exports")) == exported
    assert not folder.done.exists()


@pytest.mark.parametrize(
    ("mode", "asked", "expected"),
    [
        ("ic_lora", "none", {LORA_FILE, "comfyui/ic_lora_step_000002.safetensors"}),
        ("ic_lora", "diffusers", {LORA_FILE, "comfyui/ic_lora_step_000002.safetensors"}),
        ("full", "none", {"transformer/diffusion_pytorch_model.safetensors"}),
        (
            "full",
            "comfyui",
            {"transformer/diffusion_pytorch_model.safetensors", "comfyui/full_step_000002.safetensors"},
        ),
    ],
)
def test_the_end_of_a_run_exports_what_is_usual_and_what_is_asked_for(
    finished_runs: Path, tmp_path: Path, mode: str, asked: str, expected: set[str]
) -> None:
    run = Path(
        shutil.copytree(finished_runs / mode, tmp_path / mode, ignore=shutil.ignore_patterns("exports"))
    )
    config = load(run / "config.yaml", [f"checkpoints.export={asked}"])
    assert files(run_exports.export_end(config, RunFolder(run), Requests(tmp_path, True))) == expected
