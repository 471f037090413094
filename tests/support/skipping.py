"""What a step that is not finite on one of the ranks leaves behind in an engine: one JSON line for each config.

python -m tests.support.skipping CONFIG.yaml [CONFIG.yaml ...]
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable

import torch

from dist_trainer import dist
from dist_trainer.build import build_data, build_engine, dtype_of, open_reader
from dist_trainer.config import RunConfig, load
from dist_trainer.feed.data import open_data, run_state
from dist_trainer.feed.feed import Fed, loader, micro_steps
from dist_trainer.model.engine import Engine, Slice
from dist_trainer.model.loss import sample_sums
from dist_trainer.world import World, discover

State = tuple[dict[Slice, dict[str, torch.Tensor]], list[float]]

# What is wrong with a step: the place among its micro-steps, and what happens to the loss there. The last stays finite.
SPOILED: dict[str, tuple[int, Callable[[torch.Tensor], torch.Tensor]]] = {
    "a NaN": (0, lambda loss: loss * math.nan),
    "an infinite loss with finite gradients": (-1, lambda loss: loss + math.inf),
    "infinite gradients": (0, lambda loss: loss + (loss - loss.detach()).sqrt()),
}


def main(configs: list[str]) -> None:
    """Join, look at an engine for each config, part."""
    world = discover(os.environ)
    gathering = dist.join(world, 60.0)
    for path in configs:
        print(json.dumps(_look(load(path), world)))
    gathering.close()
    dist.leave()


def _look(config: RunConfig, world: World) -> dict[str, dict[str, object]]:
    """Train a step, then another; then again from after the first, with a spoiled one between the two."""
    steps = _fed(config, world)
    engine = build_engine(config, world)
    dtype = dtype_of(config)
    norm = _step(engine, steps[0], dtype)
    before = _state(engine)
    _step(engine, steps[1], dtype)
    whole = _state(engine)
    found: dict[str, dict[str, object]] = {
        "undisturbed": {"micro-steps": len(steps[1]), "finite": math.isfinite(norm), "updates": whole[1]}
    }
    for name, (place, spoil) in SPOILED.items():
        engine.restore(lambda piece: before[0][piece], 1)
        engine.publish()
        norm = _step(engine, steps[1], dtype, spoil if world.rank == 1 else None, place)
        kept = _equal(_state(engine), before)
        _step(engine, steps[1], dtype)
        found[name] = {
            "finite": math.isfinite(norm),
            "kept": kept,
            "goes on": _equal(_state(engine), whole),
        }
    return found


def _fed(config: RunConfig, world: World) -> list[list[Fed]]:
    """The micro-steps of two steps."""
    dataset = open_data(config)
    data = build_data(config, dataset, run_state(config, dataset, world, None))
    with open_reader(config, dataset) as reader:
        read = loader(reader, data.plan, dataset, data.feeding, pin=False)
        return [
            [read(micro) for micro in micro_steps(data.plan, dataset, data.feeding, world, step, step + 1)]
            for step in range(2)
        ]


def _step(
    engine: Engine,
    fed: list[Fed],
    dtype: torch.dtype,
    spoil: Callable[[torch.Tensor], torch.Tensor] | None = None,
    place: int = 0,
) -> float:
    for index, item in enumerate(fed):
        pack = item.pack.to("cpu", dtype)
        loss = (sample_sums(engine.forward(*pack.inputs()), pack) * pack.weights).sum() * engine.world.size
        engine.backward(spoil(loss) if spoil and index == place % len(fed) else loss, item.micro.last)
    return engine.step(1e-3)


def _state(engine: Engine) -> State:
    """All slices of this rank, and how many updates its optimizer has counted for each of its tensors."""
    # How the optimizer counts is no business of the trainer's other parts, so the engine does not offer it.
    counts = [float(state["step"]) for state in engine._inner().state.values()]
    return {piece: engine.read(piece) for piece in engine._held()}, counts


def _equal(one: State, other: State) -> bool:
    return one[1] == other[1] and all(
        torch.equal(value, other[0][piece][kind])
        for piece, kinds in one[0].items()
        for kind, value in kinds.items()
    )


if __name__ == "__main__":
    main(sys.argv[1:])
