"""Several training runs one after another in the same processes: what `dist_trainer.train` does, import paid once.

python -m tests.support.several_runs CONFIG.yaml [CONFIG.yaml ...]
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from dist_trainer import dist
from dist_trainer.config import load
from dist_trainer.run import run
from dist_trainer.stop import Requests
from dist_trainer.watch.failure import fail
from dist_trainer.world import discover


def main(configs: list[str]) -> int:
    """Run each config; stop at the first error."""
    world = discover(os.environ)
    gathering = dist.join(world, 120.0)
    try:
        for config in configs:
            run(load(config), world, gathering, Requests(Path(), is_main=False))
    except Exception as error:
        return fail(error, world, gathering)
    gathering.close()
    dist.leave()
    return 0


if __name__ == "__main__":
    status = main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
