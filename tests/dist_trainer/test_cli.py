from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from dist_trainer.cli import main

MODULES = {"export": "exporting.export.export", "push": "hub.push.push"}


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Exit code of ltx-train, in this process."""
    monkeypatch.setattr(sys, "argv", ["ltx-train", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        main()
    return int(ended.value.code or 0)


def test_export_takes_step_format_dtype_and_merge(
    ic_lora: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--step", 2, "--format", "comfyui", "--dtype", "bf16", "--merge")
    assert call(monkeypatch, "export", ic_lora, *options) == 0
    folder = ic_lora / "exports" / "step_000002"
    assert capsys.readouterr().out.strip() == str(folder)
    [merged] = (folder / "merged" / "comfyui").iterdir()
    assert not (folder / "merged" / "transformer").exists()
    assert {tensor.dtype for tensor in load_file(merged).values()} == {torch.bfloat16}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device", "file"), SafetensorError("cut")])
@pytest.mark.parametrize("command", ["export", "push"])
def test_a_full_disk_or_a_damaged_file_is_one_line(
    ic_lora: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
    error: Exception,
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(f"dist_trainer.{MODULES[command]}", fail)
    assert call(monkeypatch, command, ic_lora) == 2
    assert capsys.readouterr().err == f"error: {ic_lora}: {error}\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["export", "RUN", "--format", "ckpt"], "--format ckpt: use diffusers, comfyui or both"),
        (["export", "RUN", "--dtype", "fp16"], "--dtype fp16: use bf16 or fp32"),
        (["export", "RUN", "--pipeline", "zip"], "--pipeline zip: use link or copy"),
        (["export", "RUN", "--pipeline", "link", "--format", "comfyui"], "--pipeline: is diffusers' layout"),
        (["export", "RUN", "--ema"], "--ema: "),
        (["export", "RUN/exports"], "no config.yaml; name a run's output folder"),
        (["push", "RUN"], "hub.hub_model_id: the run's config names no repository"),
        (["push", "RUN/exports"], "no config.yaml; name a run's output folder"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    ic_lora: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: list[str],
    said: str,
) -> None:
    assert call(monkeypatch, *(part.replace("RUN", str(ic_lora)) for part in command)) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert said in error
    assert error.count("\n") == 1
