"""Batch scripts parse, and start one rank per task with what Slurm told them."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS = sorted((ROOT / "slurm").glob("*.sh"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_script_parses(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


def test_full_ft_hands_config_overrides_and_address_to_srun(tmp_path: Path) -> None:
    """srun and scontrol are recorders on PATH here; the job itself needs a cluster."""
    for name, body in {
        "scontrol": "echo node7\necho node8",
        "srun": 'echo "$MASTER_ADDR:$MASTER_PORT"; echo "$@"',
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_SUBMIT_DIR": str(ROOT),
        "SLURM_JOB_NODELIST": "node[7-8]",
        "SLURM_JOB_ID": "40123",
    }
    command = ["bash", str(ROOT / "slurm" / "full_ft.sh"), "configs/tiny/full_ft.yaml", "seed=7"]
    printed = subprocess.run(
        command, env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert printed[0] == "node7:20123"
    assert printed[1].endswith("-m dist_trainer.train configs/tiny/full_ft.yaml seed=7")
    assert "--kill-on-bad-exit=1" in printed[1]
