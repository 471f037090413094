"""The trainer on a slow machine: every tensor takes its time, to load as well as to save.

python -m tests.support.slow CONFIG
"""

from __future__ import annotations

import time
from typing import Any

from dist_trainer import train
from dist_trainer.model import engine, model

TENSOR_S = 0.2


def _slow(act: Any) -> Any:
    def slowly(*arguments: Any) -> Any:
        time.sleep(TENSOR_S)
        return act(*arguments)

    return slowly


if __name__ == "__main__":
    model.fill = _slow(model.fill)  # type: ignore[attr-defined]
    engine.Engine.read = _slow(engine.Engine.read)  # type: ignore[method-assign]
    train.entry()
