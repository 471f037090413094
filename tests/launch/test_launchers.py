"""One config, every launcher: the same losses."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from shards.dataset.opened import Dataset
from tests.support.forked import train
from tests.support.runs import ROOT, environment, free_port, losses, tiny_config, trained, write_config

STEPS = 3
# Programs installed beside the interpreter; torchrun and deepspeed start ranks with the interpreter they run in.
BIN = Path(sys.executable).parent

pytestmark = pytest.mark.timeout(300)


def deepspeed(config: Path) -> list[str]:
    """DeepSpeed's launcher."""
    program = [str(BIN / "deepspeed"), "--num_accelerators", "2", "--master_port", str(free_port())]
    return [*program, "--module", "dist_trainer.train", str(config)]


def torchrun(config: Path) -> list[str]:
    """PyTorch's launcher."""
    program = [str(BIN / "torchrun"), "--nproc_per_node", "2", "--master_port", str(free_port())]
    return [*program, "-m", "dist_trainer.train", str(config)]


def local(config: Path) -> list[str]:
    """Ours."""
    return [sys.executable, "-m", "launch", "local", "-n", "2", str(config)]


LAUNCHERS = {"deepspeed": deepspeed, "torchrun": torchrun, "local": local}


class Runs:
    """The same run under every launcher, each in a folder of its own."""

    def __init__(self, root: Path, model: Path, data: Path) -> None:
        self._root, self._model, self._data = root, model, data
        for name, command in LAUNCHERS.items():
            code, printed = run(command(self._config(name)))
            assert code == 0, printed
        train(1, self._config("alone"), logs=root / "logs_alone")
        train(2, self._config("srun"), logs=root / "logs_srun", environ=_srun())

    def folder(self, name: str) -> Path:
        return self._root / name

    def _config(self, name: str) -> Path:
        described = tiny_config(self._model, self._data, self.folder(name), optimization={"steps": STEPS})
        return write_config(self._root / f"{name}.yaml", described)


def _srun() -> list[dict[str, str]]:
    """What srun sets for each of two tasks, and where a batch script says they meet."""
    port = free_port()
    return [
        {
            "SLURM_STEP_ID": "0",
            "SLURM_PROCID": str(rank),
            "SLURM_NTASKS": "2",
            "SLURM_LOCALID": str(rank),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
        for rank in range(2)
    ]


def run(command: list[str], timeout_s: float = 120.0) -> tuple[int, str]:
    """Exit code and output of a launcher; past the limit it and all it started are killed, and the test fails."""
    process = subprocess.Popen(
        command,
        env=environment(PATH=f"{BIN}:{os.environ['PATH']}"),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    return process.returncode, printed


@pytest.fixture(scope="module")
def runs(model_folder: Path, paired_dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("launchers"), model_folder, paired_dataset.root)


@pytest.mark.parametrize("name", ["torchrun", "local", "srun"])
def test_two_processes_give_bit_equal_losses_under_any_launcher(runs: Runs, name: str) -> None:
    under_deepspeed = losses(runs.folder("deepspeed"))
    assert len(under_deepspeed) == STEPS
    assert losses(runs.folder(name)) == under_deepspeed


def test_alone_gives_the_same_losses(runs: Runs) -> None:
    np.testing.assert_allclose(losses(runs.folder("alone")), losses(runs.folder("deepspeed")), rtol=1e-5)


@pytest.mark.parametrize("name", [*LAUNCHERS, "srun"])
def test_the_same_samples_are_trained(runs: Runs, name: str) -> None:
    assert trained(runs.folder(name)) == trained(runs.folder("alone"))


@pytest.mark.parametrize("name", [*LAUNCHERS, "srun", "alone"])
def test_each_has_exported_its_weights(runs: Runs, name: str) -> None:
    folder = runs.folder(name) / "exports" / f"step_{STEPS:06d}" / "transformer"
    assert (folder / "diffusion_pytorch_model.safetensors").is_file()


def test_a_wrong_config_ends_deepspeeds_launcher_with_one_message(tmp_path: Path) -> None:
    described = tiny_config(tmp_path, tmp_path, tmp_path, modle={})
    config = write_config(tmp_path / "wrong.yaml", described)
    code, printed = run(deepspeed(config), timeout_s=240.0)
    assert code != 0
    told = [line for line in printed.splitlines() if "did you mean model?" in line]
    assert len(told) == 1, printed
    assert told[0].startswith(f"error: {config}:")
