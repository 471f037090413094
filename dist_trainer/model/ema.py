"""A running mean of the weights (EMA): smoother than the weights themselves, and often better to sample from.

Each rank keeps the mean of the slices it owns, float32, beside the master weights it updates: never gathered, never
copied in training, and saved with the other slices, so that any number of ranks goes on with it exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from dist_trainer.checkpoints.checkpoint import EMA
from dist_trainer.model.engine import Engine, Slice


class Ema:
    """After each update of the weights w the mean m becomes `decay` m + (1 - `decay`) w; it begins as the weights."""

    def __init__(self, engine: Engine, decay: float) -> None:
        self._engine, self._decay = engine, decay
        self._means = {piece: master.clone() for piece, master in engine.masters().items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take up the weights after an update. A step that was skipped is none."""
        masters = self._engine.masters()
        torch._foreach_lerp_(
            list(self._means.values()), [masters[piece] for piece in self._means], 1.0 - self._decay
        )

    def read(self, piece: Slice) -> dict[str, torch.Tensor]:
        """The mean of a slice, flat float32 on the CPU, under its kind in a checkpoint."""
        return {EMA: self._means[piece].to("cpu", copy=True)}

    def restore(self, load: Callable[[Slice], torch.Tensor] | None) -> None:
        """Set the means from what `load` gives of a slice, as `read` gave it; None: they begin as the weights now."""
        masters = self._engine.masters()
        for piece, mean in self._means.items():
            mean.copy_(load(piece) if load else masters[piece])

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Within it the model computes with the means; afterwards with the same weights as before, to the bit.

        All ranks enter and leave together. Nothing may be trained or saved inside. After an error, which ends the run,
        the weights stay as they are: to bring them back takes the other ranks, which are elsewhere.
        """
        self._swap()
        yield
        self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        for piece, master in self._engine.masters().items():
            mean = self._means[piece]
            held = master.clone()
            master.copy_(mean)
            mean.copy_(held)
        self._engine.publish()
