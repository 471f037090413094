"""ltx-launch as a user types it, and a run that it has trained."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.support.runs import ROOT, environment

STEPS, INTERVAL = 3, 2


@dataclass(frozen=True)
class Launched:
    """A run's folder and config, and how its launcher ended."""

    folder: Path
    config: Path
    code: int
    printed: str


def ltx_launch(
    *words: str | Path, timeout_s: float = 180.0, **environ: str
) -> subprocess.CompletedProcess[str]:
    """A command of ltx-launch as a user types it."""
    return subprocess.run(
        [sys.executable, "-m", "launch", *map(str, words)],
        env=environment(**environ),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
