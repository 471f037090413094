"""`ltx-launch preflight`, as a user calls it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shards.dataset.opened import Dataset
from tests.support.runs import ROOT, environment, tiny_config, write_config

pytestmark = pytest.mark.timeout(300)


def test_a_person_gets_a_table_of_figures_and_nothing_is_left(
    tmp_path: Path, model_folder: Path, paired_dataset: Dataset
) -> None:
    config = write_config(
        tmp_path / "config.yaml", tiny_config(model_folder, paired_dataset.root, tmp_path / "run")
    )
    command = [sys.executable, "-m", "launch", "preflight", str(config), "seed=3", "-n", "2"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(
        [cell.strip() for cell in line.split("│")[1:3]] for line in done.stdout.splitlines() if "│" in line
    )
    assert rows["devices"] == "2 x CPU, each computes right"
    assert rows["all-reduce"].endswith("B/s over 2 ranks")
    assert rows["slowest pair"].endswith("rank 0 and rank 1")
    assert {"nodes", "run folder", "free", "dataset", "code", "took"} <= rows.keys()
    assert not (tmp_path / "run").exists()
