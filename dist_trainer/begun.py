"""A run that has begun: what its steps, saves and looks at the model share."""

from __future__ import annotations

from dataclasses import dataclass

from dist_trainer.board.board import Board
from dist_trainer.build import Data
from dist_trainer.config import RunConfig
from dist_trainer.dist import Gathering
from dist_trainer.model.ema import Ema
from dist_trainer.model.engine import Engine
from dist_trainer.rundir import RunFolder
from dist_trainer.stop import Requests


@dataclass(frozen=True)
class Begun:
    """A run that goes on from step `start`. `ema`: where it keeps one. `board`: of rank 0."""

    config: RunConfig
    data: Data
    engine: Engine
    ema: Ema | None
    folder: RunFolder
    board: Board | None
    requests: Requests
    gathering: Gathering
    start: int
