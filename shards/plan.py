"""Which samples each optimizer step trains: a pure function of ids, lengths, batch size and seed.

An epoch is all samples in the order of a hash of (seed, epoch, id). Epochs are laid end to end into one
endless sequence, and steps are cut from it; what an epoch leaves over flows into the next. Nothing here knows
how many ranks there are, and any step can be asked for directly, so resuming needs the step number only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from shards.errors import InputError
from shards.hashing import mix

Int64s = npt.NDArray[np.int64]
Mix = Literal["random", "similar"]
T = TypeVar("T")

# Part of the fingerprint: raise it whenever the same input gives other steps.
_VERSION = 1
# Keep the two uses of the hash apart: the order of samples and the order of steps inside a window.
_SAMPLES, _STEPS = 1, 2


@dataclass(frozen=True)
class Batching:
    """How large a step is and which samples go together.

    Exactly one of `samples_per_step` (samples) and `tokens_per_step` (tokens) is set. `mix`: "random" makes
    steps independent draws; "similar" fills a step with neighbours in length out of a shuffled `window` of
    samples.
    Raises InputError on values that contradict this.
    """

    samples_per_step: int | None
    tokens_per_step: int | None
    mix: Mix = "random"
    window: int = 65536

    def __post_init__(self) -> None:
        if (self.samples_per_step is None) == (self.tokens_per_step is None):
            raise InputError(
                "batching: set exactly one of samples_per_step and tokens_per_step, "
                f"got {self.samples_per_step} and {self.tokens_per_step}"
            )
        for name in ("samples_per_step", "tokens_per_step", "window"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"batching.{name} must be at least 1, got {value}")
        if self.mix not in ("random", "similar"):
            raise InputError(f"batching.mix must be 'random' or 'similar', got {self.mix!r}")


@dataclass(frozen=True)
class Step:
    """The samples of one optimizer step, in canonical order (the same for every number of ranks).

    `rows`: int64[B], rows of the manifest; `epochs`: int64[B], the epoch each sample is drawn in. A step that
    crosses an epoch's end may hold one row twice, with different epochs.
    """

    index: int
    rows: Int64s
    epochs: Int64s


class _Epoch(NamedTuple):
    order: npt.NDArray[np.signedinteger[Any]]  # [N] rows in the order of this epoch
    starts: Int64s | None  # [N] tokens before each sample of the order; only when steps are cut by tokens


class _Window(NamedTuple):
    rows: Int64s  # [W] sorted by length
    epochs: Int64s  # [W]
    starts: Int64s  # [W] tokens before each sample of the sorted window
    tokens: int
    slots: Int64s  # [m] which cut of the window the n-th step of the window takes


class _Recent(Generic[T]):
    """The last two values of a function of an index: enough to walk forward, small enough for 10M rows."""

    def __init__(self, compute: Callable[[int], T]) -> None:
        self._compute = compute
        self._values: dict[int, T] = {}
        self._lock = threading.Lock()

    def __call__(self, index: int) -> T:
        with self._lock:
            if index not in self._values:
                while len(self._values) > 1:
                    del self._values[next(iter(self._values))]
                self._values[index] = self._compute(index)
            return self._values[index]


class Plan:
    """The endless sequence of steps over a dataset.

    `ids`: uint64[N], distinct; `tokens`: int64[N], positive (target and reference tokens of each sample);
    `seed`: any integer. The order depends on ids, not on rows: shuffling the manifest changes `Step.rows`
    only. Raises InputError for an empty dataset, repeated ids, lengths below 1, or tokens_per_step below the
    longest sample (below twice it for "similar"), where some step could be left empty.
    """

    def __init__(
        self, ids: npt.NDArray[np.uint64], tokens: npt.NDArray[np.integer[Any]], batching: Batching, seed: int
    ) -> None:
        self.ids = np.ascontiguousarray(ids, dtype=np.uint64)
        self.tokens = np.ascontiguousarray(tokens, dtype=np.int64)
        self.batching = batching
        self.seed = int(seed)
        _check_samples(self.ids, self.tokens)
        self._total = int(self.tokens.sum())
        self._count = len(self.ids)
        _check_longest(self.tokens, batching)
        self._window_steps = self._steps_per_window()
        self._epoch = _Recent(self._make_epoch)
        self._window = _Recent(self._make_window)

    @property
    def steps_per_epoch(self) -> float:
        """How many steps one pass over the data takes; seldom a whole number: epochs flow into each other."""
        length, unit = self._epoch_length()
        return length / unit

    def step(self, k: int) -> Step:
        """Step `k` >= 0; random access, equal to walking there. Raises IndexError for negative `k`."""
        k = _step_index(k)
        if self.batching.mix == "similar":
            rows, epochs = self._similar(k)
        else:
            _, unit = self._epoch_length()
            rows, epochs = self._span(k * unit, (k + 1) * unit)
        return Step(k, rows, epochs)

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits over ids, lengths, batching, seed and algorithm version, whatever the row order."""
        samples = mix(self.ids, self.tokens)
        batching = self.batching
        window = batching.window if batching.mix == "similar" else 0
        digest = mix(
            _VERSION,
            self.seed,
            self._count,
            np.sum(samples, dtype=np.uint64),
            np.bitwise_xor.reduce(samples),
            batching.samples_per_step or 0,
            batching.tokens_per_step or 0,
            window,
        )
        return f"{int(digest):016x}"

    def _epoch_length(self) -> tuple[int, int]:
        """(length of an epoch, length of a step), both in samples or both in tokens."""
        if self.batching.samples_per_step is not None:
            return self._count, self.batching.samples_per_step
        assert self.batching.tokens_per_step is not None
        return self._total, self.batching.tokens_per_step

    def _steps_per_window(self) -> int:
        """Whole steps in a window of the asked size: at most an epoch, at least one step."""
        length, unit = self._epoch_length()
        asked = min(self.batching.window, self._count)
        return max(1, asked * length // (self._count * unit))

    def _make_epoch(self, epoch: int) -> _Epoch:
        # Distinct ids have distinct keys, so the order is the same whatever the row order.
        order = np.argsort(mix(self.seed, _SAMPLES, epoch, self.ids), kind="stable")
        starts = None
        if self.batching.tokens_per_step is not None:
            starts = _starts(self.tokens[order])
        return _Epoch(order.astype(np.int32) if self._count < 2**31 else order, starts)

    def _span(self, begin: int, end: int) -> tuple[Int64s, Int64s]:
        """Rows and epochs of the samples that begin at positions [begin, end) of the endless sequence."""
        length, _ = self._epoch_length()
        rows, epochs = [], []
        for epoch in range(begin // length, (end - 1) // length + 1):
            order, starts = self._epoch(epoch)
            first, last = max(0, begin - epoch * length), min(length, end - epoch * length)
            if starts is not None:
                first, last = (int(i) for i in np.searchsorted(starts, [first, last]))
            rows.append(order[first:last].astype(np.int64))
            epochs.append(np.full(last - first, epoch, dtype=np.int64))
        return np.concatenate(rows), np.concatenate(epochs)

    def _make_window(self, index: int) -> _Window:
        _, unit = self._epoch_length()
        size = self._window_steps * unit
        rows, epochs = self._span(index * size, (index + 1) * size)
        lengths = self.tokens[rows]
        by_length = np.argsort(lengths, kind="stable")
        keys = mix(self.seed, _STEPS, index, np.arange(self._window_steps, dtype=np.uint64))
        return _Window(
            rows=rows[by_length],
            epochs=epochs[by_length],
            starts=_starts(lengths[by_length]),
            tokens=int(lengths.sum()),
            slots=np.argsort(keys, kind="stable").astype(np.int64),
        )

    def _similar(self, k: int) -> tuple[Int64s, Int64s]:
        steps = self._window_steps
        window = self._window(k // steps)
        slot = int(window.slots[k % steps])
        if self.batching.samples_per_step is not None:
            first, last = (self.batching.samples_per_step * s for s in (slot, slot + 1))
        else:
            # The window holds nearly, not exactly, steps * tokens_per_step tokens: share out what is there.
            edges = [-(-s * window.tokens // steps) for s in (slot, slot + 1)]
            first, last = (int(i) for i in np.searchsorted(window.starts, edges))
        return window.rows[first:last], window.epochs[first:last]


def _starts(lengths: Int64s) -> Int64s:
    """Exclusive prefix sum, int64[N]."""
    starts = np.zeros(len(lengths), dtype=np.int64)
    np.cumsum(lengths[:-1], out=starts[1:])
    return starts


def _step_index(k: int) -> int:
    if k < 0:
        raise IndexError(f"steps are numbered from 0, got {k}")
    return int(k)


def _check_samples(ids: npt.NDArray[np.uint64], tokens: Int64s) -> None:
    if ids.ndim != 1 or ids.shape != tokens.shape:
        raise ValueError(f"ids and tokens must be vectors of one length, got {ids.shape} and {tokens.shape}")
    if len(ids) == 0:
        raise InputError("the dataset has no samples: nothing to plan")
    if int(tokens.min()) < 1:
        row = int(tokens.argmin())
        raise InputError(
            f"row {row} of the manifest has {int(tokens[row])} tokens; every sample needs at least 1"
        )
    ordered = np.sort(ids)
    twins = np.flatnonzero(ordered[1:] == ordered[:-1])
    if len(twins):
        first, second = np.flatnonzero(ids == ordered[twins[0]])[:2]
        raise InputError(
            f"rows {first} and {second} of the manifest have the same sample id; keys must be unique"
        )


def _check_longest(tokens: Int64s, batching: Batching) -> None:
    if batching.tokens_per_step is None:
        return
    longest = int(tokens.max())
    needed = 2 * longest if batching.mix == "similar" else longest
    if batching.tokens_per_step < needed:
        rule = (
            "twice the longest sample for mix 'similar'"
            if batching.mix == "similar"
            else "the longest sample"
        )
        raise InputError(
            f"batching.tokens_per_step is {batching.tokens_per_step} but the longest sample has {longest} "
            f"tokens: it must be at least {needed} ({rule})"
        )
