"""Commands of ltx-launch on a cluster for tests."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.runs import ROOT, environment
from tests.support.slurm import Cluster

_COMMANDS = """
import json, sys
from launch.cli import app
for words in json.loads(sys.argv[1]):
    app(words, standalone_mode=False)
"""


def ltx_launch_on(slurm: Cluster, *commands: Sequence[str], code: Path = ROOT) -> str:
    """What `ltx-launch WORDS` prints for each command, in one process: each would load what checks a config first.

    `code` is the folder of the call, and of the packages. Raises AssertionError where one fails.
    """
    own = {name: value for name, value in environment(PYTHONPATH=str(code)).items() if name != "PATH"}
    done = subprocess.run(
        [sys.executable, "-c", _COMMANDS, json.dumps(commands)],
        cwd=code,
        env=slurm.environment(**own),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
