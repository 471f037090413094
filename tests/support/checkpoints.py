"""Checkpoints of small made-up parameters, written by ranks that are threads."""

from __future__ import annotations

import math
from pathlib import Path

import torch

from dist_trainer.checkpoints.checkpoint import Checkpoint
from dist_trainer.checkpoints.saving import Piece, save
from dist_trainer.dist import Gathering
from tests.support.gatherings import at_once, in_memory

Shapes = dict[str, tuple[int, ...]]
Values = dict[str, dict[str, torch.Tensor]]

SHAPES: Shapes = {"blocks.0.weight": (5, 3), "blocks.0.bias": (5,), "scale": ()}
KINDS = ("master", "exp_avg", "exp_avg_sq")


def state(shapes: Shapes, seed: int = 0) -> Values:
    """Flat random float32 tensors of every kind for each parameter."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: {kind: torch.randn(math.prod(shape), generator=generator) for kind in KINDS}
        for name, shape in shapes.items()
    }


def evenly(numel: int, ranks: int) -> list[tuple[int, int]]:
    """The part of a parameter each rank owns, as ZeRO-3 cuts it; the last ones may own nothing."""
    part = -(-numel // ranks)
    return [(min(rank * part, numel), min((rank + 1) * part, numel)) for rank in range(ranks)]


def owned(values: Values, ranks: int) -> list[list[Piece]]:
    """The pieces of each rank, cut evenly."""
    pieces: list[list[Piece]] = [[] for _ in range(ranks)]
    for name, kinds in values.items():
        for rank, (start, stop) in enumerate(evenly(len(kinds["master"]), ranks)):
            if start < stop:
                pieces[rank].append((name, start, stop, {k: v[start:stop] for k, v in kinds.items()}))
    return pieces


def write(folder: Path, step: int, shapes: Shapes, pieces: list[list[Piece]], keep_last_n: int = -1) -> None:
    """Save as that many ranks, all at once; fails where a rank failed."""

    def act(gathering: Gathering) -> Path:
        own = pieces[gathering.world.rank]
        return save(folder, step, shapes, own, gathering, keep_last_n)

    for result in at_once(act, in_memory(len(pieces))):
        assert result == folder / f"step_{step:06d}", result


def assert_holds(checkpoint: Checkpoint, values: Values, ranks: int = 1) -> None:
    """Every slice that any of `ranks` ranks would ask for is what was saved."""
    for name, kinds in values.items():
        for start, stop in evenly(len(kinds["master"]), ranks):
            read = checkpoint.read(name, start, stop) if start < stop else {}
            for kind, whole in kinds.items():
                assert start == stop or torch.equal(read[kind], whole[start:stop])
