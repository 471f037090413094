"""What a step's forward, backward and update take under ZeRO-3 beside ZeRO-1, on one process: the price of the hooks.

    python -m tests.bench.bench_stages

A model of many small blocks, whose products take little time, shows what the host does. The peer is DeepSpeed's own
way, a hook on each module. Each way has a process of its own: ZeRO-3 replaces torch's
linear maps for all of a process.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table

from dist_trainer import dist
from dist_trainer.build import build_engine
from dist_trainer.config import load
from dist_trainer.model import ltx
from dist_trainer.world import World
from tests.bench.bench_step import make_model, make_step, packed
from tests.support.runs import ROOT, lora_blocks, tiny_config, write_config

WAYS = {"ZeRO-1": 1, "ZeRO-3, a block in one piece": 3, "ZeRO-3, hooks on each module": 3}
MODES: dict[str, dict[str, Any]] = {"full": {}, "lora": lora_blocks()}
SIZES = argparse.Namespace(layers=28, width=64, text_width=64, samples=2, stretch=1, checkpointing=False)


def measure(folder: Path, mode: str, way: str, steps: int) -> float:
    """Median of the seconds of a step, in this process."""
    world = World(0, 1, 0)
    settings = {
        **MODES[mode],
        "acceleration": {"mixed_precision_mode": "bf16" if world.device.type == "cuda" else None},
        "deepspeed": {"stage": WAYS[way]},
    }
    settings["optimization"] = {"steps": 1, "learning_rate": 1e-4, "enable_gradient_checkpointing": True}
    config = load(
        write_config(folder / "config.yaml", tiny_config(folder, folder, folder / "run", **settings))
    )
    step = make_step(SIZES, world.device)
    gathering = dist.join(world, 60.0)
    own = "module" in way
    with mock.patch.object(ltx, "blocks", return_value=()) if own else contextlib.nullcontext():
        engine = build_engine(config, world)
    model: Any = engine.forward
    passes = packed(model, step, max(step.tokens)).passes
    seconds = []
    for _ in range(steps):
        began = time.perf_counter()
        for number, part in enumerate(passes, start=1):
            engine.backward(part(), last=number == len(passes))
        engine.step(1e-4)  # waits for the device
        seconds.append(time.perf_counter() - began)
    gathering.close()
    dist.leave()
    return median(seconds[steps // 3 :])


def compare(folder: Path, steps: int) -> Table:
    """Each way in a process of its own, one after another."""
    step = make_step(SIZES, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    make_model(SIZES, step).save_pretrained(folder / "transformer")
    table = Table(
        title=f"{SIZES.layers} blocks of width {SIZES.width}, {len(step.tokens)} samples, {step.device}"
    )
    for heading in ("mode", "way", "s a step", "times ZeRO-1"):
        table.add_column(heading)
    for mode in MODES:
        took = {way: _in_process(folder, mode, way, steps) for way in WAYS}
        for way, seconds in took.items():
            table.add_row(mode, way, f"{seconds:.3f}", f"{seconds / took['ZeRO-1']:.2f}")
    return table


def _in_process(folder: Path, mode: str, way: str, steps: int) -> float:
    command = [sys.executable, "-m", "tests.bench.bench_stages", "--one", mode, way, "--steps", str(steps)]
    environ = {"OMP_NUM_THREADS": "1", **os.environ}
    done = subprocess.run(
        [*command, "--folder", str(folder)],
        cwd=ROOT,
        env=environ,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=9, help="of which the first third does not count")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print(measure(given.folder, *given.one, given.steps))
        return
    with tempfile.TemporaryDirectory() as folder:
        Console().print(compare(Path(folder), given.steps))


if __name__ == "__main__":
    main()
