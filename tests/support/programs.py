"""Stand-ins for programs that a test calls by name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Counts jobs from 100, and keeps what it was given.
SBATCH = """
n=$(ls "$HERE" | grep -c 'job$'); cp "${@: -1}" "$HERE/$((100 + n)).job"; echo "Submitted batch job $((100 + n))"
"""


def stand_ins(folder: Path, monkeypatch: pytest.MonkeyPatch, **scripts: str) -> Path:
    """Put programs of these names ahead of all others, each a few lines of bash; $HERE is the folder, returned."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in scripts.items():
        path = folder / name
        path.write_text(f'#!/bin/bash\nHERE="{folder}"\n{lines}\n')
        path.chmod(0o755)
    if os.environ["PATH"].partition(os.pathsep)[0] != str(folder):
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder
