"""What a rank tells the others of itself, again and again."""

from __future__ import annotations

import json
import time
from typing import NamedTuple

from torch.distributed import Store


class Beat(NamedTuple):
    """What a rank tells of itself: how often it has told, its signs of life, marks, place, where it stands, if it
    stands in a wait for others, if it was told to end."""

    told: int = 0
    moves: int = 0
    marks: int = 0
    place: str = ""
    where: str = ""
    waits: bool = False
    ending: bool = False


def heard(text: bytes) -> Beat:
    """A beat as it was told in JSON."""
    return Beat(*json.loads(text))


def beats_of(store: Store, size: int) -> dict[int, Beat]:
    """The newest beats of ranks 0 to `size`; empty where one has never told. Raises RuntimeError without the store."""
    keys = [f"beat/{rank}" for rank in range(size)]
    return dict(enumerate(map(heard, store.multi_get(keys)))) if store.check(keys) else {}


def without_beats(store: Store, size: int, own: int, seconds: float) -> dict[int, Beat]:
    """Ranks but `own` whose hearts do not beat for `seconds`, with their last beat. Raises as `beats_of`."""
    first = beats_of(store, size)
    waiting = [rank for rank in first if rank != own]
    until = time.monotonic() + seconds
    while waiting and time.monotonic() < until:
        time.sleep(min(0.2, seconds / 3))
        now = beats_of(store, size)
        waiting = [rank for rank in waiting if now[rank] == first[rank]]
    return {rank: first[rank] for rank in waiting}


def behind(beats: dict[int, Beat]) -> dict[int, Beat]:
    """Of ranks with their beats, those that have come less far than others; empty when all are level."""
    farthest = max((beat.marks for beat in beats.values()), default=0)
    return {rank: beat for rank, beat in beats.items() if beat.marks < farthest}


def places(beats: dict[int, Beat]) -> str:
    """Where ranks are in their work and in the code, each place once."""
    found = dict.fromkeys(f"{beat.place}: {beat.where}" for beat in beats.values())
    shown = "; ".join(list(found)[:3])
    return shown + (f"; and {len(found) - 3} more places" if len(found) > 3 else "")
