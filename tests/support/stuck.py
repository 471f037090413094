"""The trainer on a file system that stops answering: the last rank's reads of shards never end after the first ones.

python -m tests.support.stuck CONFIG
"""

from __future__ import annotations

import itertools
import os
from typing import Any

from dist_trainer import train

ANSWERED = 30

if __name__ == "__main__":
    preadv, calls = os.preadv, itertools.count()
    last = os.environ.get("RANK", "0") == str(int(os.environ.get("WORLD_SIZE", "1")) - 1)

    def stuck(*arguments: Any) -> int:
        if last and next(calls) >= ANSWERED:
            os.read(os.pipe()[0], 1)
        return preadv(*arguments)

    os.preadv = stuck
    train.entry()
