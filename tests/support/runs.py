"""Real training runs in real processes, with a hard time limit, and what they left behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
# Blocks of a tiny config with which a rank trains its share of a step in one pack, in half the time.
ONE_PACK = {"batching": {"max_tokens_per_pack": 400}}


def tiny_config(model_folder: Path, data_folder: Path, output: Path, **blocks: Any) -> dict[str, Any]:
    """A float32 config for tiny models; `blocks` are merged over it, block by block."""
    base: dict[str, Any] = {
        "model": {"model_source": str(model_folder), "training_mode": "full"},
        "optimization": {"steps": 20, "learning_rate": 0.01, "scheduler_type": "constant"},
        "acceleration": {"mixed_precision_mode": None, "compile_with_inductor": False},
        "batching": {"samples_per_step": 7},
        "data": {"preprocessed_data_root": str(data_folder)},
        "validation": {"interval": None},
        "health": {"preflight": False},  # half a second a run, and tested by itself
        # Tiny parameters would all stay replicated under DeepSpeed's default threshold, and nothing be tested.
        "deepspeed": {
            "timeout_minutes": 2,
            "config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}},
        },
        "output_dir": str(output),
    }
    for name, block in blocks.items():
        base[name] = {**base.get(name, {}), **block} if isinstance(block, Mapping) else block
    return base


def lora_blocks(reference: bool = False) -> dict[str, Any]:
    """Blocks that turn a tiny config into LoRA, or IC-LoRA with `reference`."""
    blocks: dict[str, Any] = {
        "model": {"training_mode": "lora"},
        "lora": {"rank": 4, "alpha": 8},
    }
    if reference:
        blocks["conditioning"] = {"mode": "reference_video", "first_frame_conditioning_p": 0.3}
        blocks["validation"] = {"prompts": ["a"], "reference_videos": ["a.mp4"], "interval": None}
    return blocks


def write_config(path: Path, config: Mapping[str, Any]) -> Path:
    """Write a config as YAML."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(config)), encoding="utf-8")
    return path


def environment(**more: str) -> dict[str, str]:
    """This process's environment without any launcher's traces, for tests on the CPU."""
    traces = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_", "SLURM_", "TORCHELASTIC_")
    clean = {key: value for key, value in os.environ.items() if not key.startswith(traces)}
    return {
        **clean,
        "OMP_NUM_THREADS": "1",
        "DS_ACCELERATOR": "cpu",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": str(ROOT),
        **more,
    }


def hearing() -> None:
    """For `preexec_fn`: the child hears Ctrl-C and the end of its terminal, whatever started the suite (nohup, &)."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def ranks(size: int, rank: int, port: int) -> dict[str, str]:
    """What a launcher sets for one rank."""
    place = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "WORLD_SIZE": size,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }
    return {key: str(value) for key, value in place.items()}


def free_port() -> int:
    """A TCP port nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Ranks:
    """One process per rank running `python -m module arguments...`; their output is kept apart."""

    def __init__(self, size: int, module: str, arguments: Sequence[str | Path], logs: Path) -> None:
        port = free_port()
        logs.mkdir(parents=True, exist_ok=True)
        self._logs = [logs / f"rank_{rank}.log" for rank in range(size)]
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self.processes = []
        for rank, log in enumerate(self._logs):
            with log.open("wb") as out:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        env=environment(**ranks(size, rank, port)),
                        stdout=out,
                        stderr=subprocess.STDOUT,
                        cwd=ROOT,
                        start_new_session=True,
                    )
                )

    def output(self) -> str:
        """What all ranks printed, each under its own heading."""
        return "\n".join(
            f"--- rank {i}\n{log.read_text(errors='replace')}" for i, log in enumerate(self._logs)
        )

    def wait(self, timeout_s: float = 180.0) -> list[int]:
        """Exit codes of all ranks; past the limit everything is killed and the test fails with all output."""
        try:
            return [process.wait(timeout_s) for process in self.processes]
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"ranks still running after {timeout_s} s\n{self.output()}") from None

    def kill(self) -> None:
        """SIGKILL every rank and whatever it started."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def train(size: int, *configs: Path, logs: Path, timeout_s: float = 240.0) -> str:
    """Train configs one after another on `size` ranks; returns all output, fails with it on a bad exit code."""
    group = Ranks(size, "tests.support.several_runs", configs, logs)
    codes = group.wait(timeout_s)
    assert codes == [0] * size, f"exit codes {codes}\n{group.output()}"
    return group.output()


def lines(path: Path) -> list[dict[str, Any]]:
    """The records of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def losses(run: Path) -> list[float]:
    """Loss of every step of a run."""
    return [record["train/loss"] for record in lines(run / "metrics.jsonl")]


def trained(run: Path) -> list[dict[str, Any]]:
    """The audit log of a run: step, epochs and sample ids."""
    return lines(run / "logs" / "trained.jsonl")
