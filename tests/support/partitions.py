"""Two JSON lines once the engine stands: the names of modules whose weights come in one piece, and what of each
parameter a rank holds, name -> [whole, kept, present] elements.

python -m tests.support.partitions CONFIG.yaml
"""

from __future__ import annotations

import json
import os
import sys

from dist_trainer import dist
from dist_trainer.build import build_engine
from dist_trainer.config import load
from dist_trainer.world import discover


def main(path: str) -> None:
    """Join, build the engine of a stage 3 config, print, part."""
    world = discover(os.environ)
    gathering = dist.join(world, 60.0)
    engine = build_engine(load(path), world)
    # The module's parameters are no business of the trainer's other parts, so the engine does not offer them.
    model = engine._engine.module
    print(json.dumps([name for name, module in model.named_modules() if getattr(module, "_z3_leaf", False)]))
    parameters = model.named_parameters()
    print(json.dumps({name: [p.ds_numel, p.ds_tensor.numel(), p.numel()] for name, p in parameters}))
    gathering.close()
    dist.leave()


if __name__ == "__main__":
    main(sys.argv[1])
