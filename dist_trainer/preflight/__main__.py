"""python -m dist_trainer.preflight CONFIG [key=value ...]: the trial of the nodes alone, for a person to read."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from dist_trainer import dist
from dist_trainer.config import load
from dist_trainer.preflight.report import show
from dist_trainer.preflight.trial import LIMIT_S, NETWORK_S, alone, together
from dist_trainer.watch.failure import fail
from dist_trainer.world import discover


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the nodes of these processes; exit code 0 when they are fit, 2 for bad input, else 1."""
    parser = argparse.ArgumentParser(prog="dist_trainer.preflight", description="Try all nodes of a run.")
    parser.add_argument("config", type=Path, help="YAML file")
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="settings that replace those of the file"
    )
    parser.add_argument("--limit", type=float, help="seconds that each part may take")
    parsed = parser.parse_args(arguments)
    world = gathering = None
    try:
        world = discover(os.environ)
        config = load(parsed.config, parsed.overrides)
        gathering = dist.connect(world, config.deepspeed.timeout_minutes * 60)
        trial = alone(config, gathering, parsed.limit or LIMIT_S, recording=False)
        dist.start(gathering)
        figures = together(trial, gathering, parsed.limit or NETWORK_S)
        if world.is_main:
            show(figures, trial.warnings, Console())
        gathering.close()
        dist.leave()
        return 0
    except Exception as error:
        return fail(error, world, gathering)


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # A device or a file system that hangs holds a thread which would not let the process end.
    os._exit(status)
