"""What a rank tells the others of itself, again and again."""

from __future__ import annotations

import json
from typing import NamedTuple


class Beat(NamedTuple):
    """What a rank tells of itself: how often it has told, its signs of life, marks, place, where it stands, if it
    stands in a wait for others."""

    told: int = 0
    moves: int = 0
    marks: int = 0
    place: str = ""
    where: str = ""
    waits: bool = False


def heard(text: bytes) -> Beat:
    """A beat as it was told in JSON."""
    return Beat(*json.loads(text))


def places(beats: dict[int, Beat]) -> str:
    """Where ranks are in their work and in the code, each place once."""
    found = dict.fromkeys(f"{beat.place}: {beat.where}" for beat in beats.values())
    shown = "; ".join(list(found)[:3])
    return shown + (f"; and {len(found) - 3} more places" if len(found) > 3 else "")
