from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dist_trainer.exporting.export import Wanted, export
from dist_trainer.model.family import LORA_FILE, WEIGHTS
from dist_trainer.model.start import Start, find_start
from shards.errors import InputError

LORA = {
    "transformer.proj_in.lora_A.weight": torch.zeros(4, 8),
    "transformer.proj_in.lora_B.weight": torch.zeros(9, 4),
}


@pytest.fixture
def runs(finished_runs: Path, tmp_path: Path) -> Path:
    """Copies of a full run and a LoRA run of two steps."""
    for name in ("full", "ic_lora"):
        shutil.copytree(finished_runs / name, tmp_path / name)
    return tmp_path


def lora(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(LORA, path)
    return path


def test_a_file_is_told_by_its_tensors(tmp_path: Path, model_folder: Path) -> None:
    file = lora(tmp_path / "somebody.safetensors")
    assert find_start(str(file), "lora") == Start("adapter", str(file))
    whole = model_folder / "transformer" / WEIGHTS
    assert find_start(str(whole), "full") == Start("full", str(whole))
    # A LoRA may be trained on a model that was trained before.
    assert find_start(str(whole), "lora") == Start("full", str(whole))


def test_of_a_run_the_newest_checkpoint_is_taken(runs: Path) -> None:
    found = find_start(str(runs / "ic_lora"), "lora")
    assert found == Start("adapter", str(runs / "ic_lora" / "checkpoints" / "step_000002"))
    assert found.is_checkpoint
    assert find_start(str(runs / "full"), "full").kind == "full"
    assert find_start(str(runs / "full" / "checkpoints" / "step_000001"), "full").path.name == "step_000001"
    assert find_start(str(runs / "full" / "checkpoints"), "full").path.name == "step_000002"


def test_under_a_lora_a_runs_export_is_taken_which_outlives_its_checkpoint(runs: Path) -> None:
    exported = runs / "full" / "exports" / "step_000002" / "transformer"
    assert find_start(str(runs / "full"), "lora") == Start("full", str(exported))
    os.utime(exported, (0, 0))
    assert find_start(str(runs / "full"), "lora").is_checkpoint, "it is of another checkpoint of that step"
    shutil.rmtree(exported)
    assert find_start(str(runs / "full"), "lora").is_checkpoint


def test_of_a_run_whose_checkpoints_are_gone_the_newest_export_is_taken(runs: Path) -> None:
    shutil.rmtree(runs / "full" / "checkpoints")
    found = find_start(str(runs / "full"), "full")
    assert found == Start("full", str(runs / "full" / "exports" / "step_000002" / "transformer"))
    assert not found.is_checkpoint


def test_an_export_and_a_pipeline_are_taken_whole(runs: Path, model_folder: Path) -> None:
    exported = runs / "ic_lora" / "exports" / "step_000002"
    assert find_start(str(exported), "lora") == Start("adapter", str(exported / LORA_FILE))
    [comfyui] = (exported / "comfyui").iterdir()
    assert find_start(str(exported / "comfyui"), "lora") == Start("adapter", str(comfyui))
    export(runs / "ic_lora", wanted=Wanted(merge=True))
    merged = exported / "merged"
    assert find_start(str(merged), "full") == Start("full", str(merged / "transformer"))
    assert find_start(str(model_folder), "full").path == model_folder / "transformer"


@pytest.mark.parametrize("below", ["", "checkpoints/"])
def test_in_a_folder_the_file_of_the_highest_step_is_taken(tmp_path: Path, below: str) -> None:
    """As LTX-Video-Trainer names and places its files."""
    for step in ("00500", "01000", "00900"):
        lora(tmp_path / f"{below}lora_weights_step_{step}.safetensors")
    found = find_start(str(tmp_path), "lora")
    assert found.place == str(tmp_path / f"{below}lora_weights_step_01000.safetensors")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: folder, "no weights in this folder"),
        (lambda folder: folder / "absent", "absent: no such file or folder"),
        (
            lambda folder: _text(folder / "old.ckpt"),
            r"old\.ckpt: weights are read from \.safetensors files only",
        ),
        (lambda folder: _text(folder / "cut.safetensors"), r"cut\.safetensors: damaged weights file"),
        (
            lambda folder: lora(folder / "a.safetensors") and lora(folder / "b.safetensors").parent,
            "holds 2 .*name one",
        ),
    ],
)
def test_what_holds_no_weights_is_refused(tmp_path: Path, make: object, said: str) -> None:
    given = make(tmp_path)  # type: ignore[operator]
    with pytest.raises(InputError, match=rf"model\.load_checkpoint: .*{said}"):
        find_start(str(given), "lora")


def test_full_training_starts_from_no_lora(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a LoRA, and model\.training_mode is full"):
        find_start(str(lora(tmp_path / "lora.safetensors")), "full")


def _text(path: Path) -> Path:
    path.write_text("no weights")
    return path
