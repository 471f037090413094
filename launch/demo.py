"""The whole path on one machine, on a CPU: clips, shards, three kinds of training, a kill and a resume, export.

The model is tiny but trained: each run teaches it something new, and what it learned is measured at the end.
Everything a user would type is run as a command and printed first.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.rule import Rule

from launch.learned import table
from launch.lessons import draw_clips, draw_references
from launch.session import run, send, started
from shards.errors import InputError

_RECIPES = Path(__file__).resolve().parents[1] / "configs" / "tiny"
# By mode, as the recipes say. Gathering weights at every layer makes a tiny model about ten times slower.
_STAGES = {"lora": 1, "ic_lora": 1, "full_ft": 3}
_KILLED = "ic_lora"
_MARKER = ".made-by-demo"


def demo(folder: Path, clips: int, console: Console) -> None:
    """Run the demo in `folder` (emptied first). Raises CalledProcessError when a command fails."""
    began = time.monotonic()
    _empty(folder)
    _prepare(folder, clips, console)
    for mode, stage in _STAGES.items():
        if mode == _KILLED:
            console.print(Rule(f"training {mode}: ZeRO-{stage}, deepspeed launcher, 1 process"))
            _train_and_kill(folder, mode, console)
            console.print(Rule(f"resuming {mode} on 2 processes instead of 1"))
        else:
            console.print(Rule(f"training {mode}: ZeRO-{stage}, deepspeed launcher, 2 processes"))
        _run(_training(folder, mode, processes=2), console)
    _summary(folder, time.monotonic() - began, console)


def _empty(folder: Path) -> None:
    """Make way for the demo; a folder that no demo made is left alone (InputError)."""
    if folder.exists() and any(folder.iterdir()) and not (folder / _MARKER).is_file():
        raise InputError(f"--folder {folder}: holds something that no demo made; name a new or empty folder")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / _MARKER).touch()


def _prepare(folder: Path, clips: int, console: Console) -> None:
    from dist_trainer.config import load
    from dist_trainer.tiny.domain import BUCKETS
    from dist_trainer.tiny.trained import WEIGHTS

    console.print(Rule("a tiny LTX model, trained on clips of moving shapes, and clips that it has not seen"))
    shutil.copytree(WEIGHTS, folder / "model")
    described = draw_clips(folder / "clips", clips)
    draw_references(folder / "references", load(_RECIPES / "ic_lora.yaml").validation.prompts)
    console.print(Rule("clips -> WebDataset shards"))
    shards, model = [sys.executable, "-m", "shards"], ["--model", str(folder / "model")]
    for mode, rows in described.items():
        dataset = str(folder / "data" / mode)
        _run([*shards, "encode", str(rows), *model, "--out", dataset, "--buckets", BUCKETS], console)
    dataset = str(folder / "data" / _KILLED)
    _run([*shards, "doctor", dataset], console)
    _run([*shards, "plan", dataset, "--ranks", "2,8", "--samples-per-step", "16"], console)
    _run([*shards, "decode", dataset, *model, "--first", "4", "--out", str(folder / "look")], console)


def _training(folder: Path, mode: str, processes: int) -> list[str]:
    """The command that trains a mode with DeepSpeed's own launcher."""
    drawn = [str(path) for path in sorted((folder / "references").iterdir())]
    references = [f"validation.reference_videos={json.dumps(drawn)}"] if mode == "ic_lora" else []
    return [
        str(Path(sys.executable).with_name("deepspeed")),
        "--quiet",
        "--num_accelerators",
        str(processes),
        "--master_port",
        str(29500 + os.getpid() % 1000),
        "--module",
        "dist_trainer.train",
        str(_RECIPES / f"{mode}.yaml"),
        f"model.model_source={folder / 'model'}",
        f"data.preprocessed_data_root={folder / 'data' / mode}",
        f"output_dir={folder / 'runs' / mode}",
        *references,
    ]


def _train_and_kill(folder: Path, mode: str, console: Console) -> None:
    """Start training and kill -9 every process of it as soon as there is a checkpoint."""
    command = _training(folder, mode, processes=1)
    _show(command, console)
    latest = folder / "runs" / mode / "checkpoints" / "latest"
    with started(command, _environment()) as process:
        while not latest.is_file():
            if process.poll() is not None:
                raise subprocess.CalledProcessError(process.returncode or 1, command)
            time.sleep(0.05)
        send(process.pid, signal.SIGKILL)
    process.wait()
    console.print(f"[bold]killed -9 after checkpoint {latest.read_text().strip()}[/bold]")


def _summary(folder: Path, seconds: float, console: Console) -> None:
    console.print(Rule(f"done in {seconds:.0f} s"))
    console.print(table(folder / "runs"))
    console.print("Exported weights:")
    for mode in _STAGES:
        newest = sorted((folder / "runs" / mode / "exports").iterdir())[-1]
        for path in sorted(newest.rglob("*.safetensors")):
            console.print(f"  {mode}: {path}", soft_wrap=True, highlight=False)
    board = Path(sys.executable).with_name("tensorboard")
    for line in (
        f"watch the videos change:  {board} --logdir {folder / 'runs'}  (Images; references are on the left)",
        f"the same as files:  {folder / 'runs'}/*/samples/step_*/*.mp4",
    ):
        console.print(line, soft_wrap=True, highlight=False)
    console.print("next: README.md, from videos of your own to a trained adapter")


def _run(command: Sequence[str], console: Console) -> None:
    _show(command, console)
    run(command, _environment())


def _show(command: Sequence[str], console: Console) -> None:
    console.print("$ " + shlex.join(command), style="bold cyan", soft_wrap=True, highlight=False)


def _environment() -> dict[str, str]:
    # The demo's model is for a CPU, also where there is a GPU.
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
