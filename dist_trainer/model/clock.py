"""How long a rank really computes, apart from what it waits for: what shows whether ranks have the same work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


class Clock:
    """Seconds of a rank's forward passes of training without the waits in them: under ZeRO-3, for others' weights.

    Ranks in lock-step end at the same time whatever their work is; this tells them apart. The backward pass is in
    proportion to the forward pass. On a GPU the device's own time is taken, which costs no wait until `take`.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._runs = False
        self._spans: list[tuple[float, Any, Any]] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time inside. Looking at the model, without gradients, is not counted."""
        if not torch.is_grad_enabled():
            yield
            return
        self._runs = True
        began = self._mark()
        try:
            yield
        finally:
            self._runs = False
            self._spans.append((1.0, began, self._mark()))

    def without(self, wait: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, its time not counted where it is called inside `running`."""

        def waited(*arguments: Any, **named: Any) -> Any:
            if not self._runs:
                return wait(*arguments, **named)
            began = self._mark()
            try:
                return wait(*arguments, **named)
            finally:
                self._spans.append((-1.0, began, self._mark()))

        return waited

    def take(self) -> float:
        """The seconds counted since the last call. On a GPU it waits for what has been asked of it so far."""
        spans, self._spans = self._spans, []
        if not self._on_gpu:
            return float(sum(sign * (end - began) for sign, began, end in spans))
        if spans:
            spans[-1][2].synchronize()
        return float(sum(sign * began.elapsed_time(end) for sign, began, end in spans)) / 1000

    def _mark(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event
