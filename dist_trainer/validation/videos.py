"""Which sample videos a validation makes, and which rank makes which. Imports without torch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple

_LONGEST = 40


class Video(NamedTuple):
    """A sample video: number of its prompt and of its copy, from 0, and its file's name."""

    prompt: int
    copy: int
    name: str


def videos(prompts: Sequence[str], per_prompt: int, frames: int) -> tuple[Video, ...]:
    """All videos of a validation, in order. One of a single frame is a picture."""
    suffix = ".mp4" if frames > 1 else ".png"
    return tuple(
        Video(number, copy, _stem(number, prompt, copy if per_prompt > 1 else None) + suffix)
        for number, prompt in enumerate(prompts)
        for copy in range(per_prompt)
    )


def share(names: Sequence[str], ranks: int, rank: int) -> list[str | None]:
    """The files that a rank makes, turn after turn; None where there is none left for it.

    All ranks have as many turns, and each file is made once.
    """
    turns = -(-len(names) // ranks)
    padded = [*names, *[None] * (turns * ranks - len(names))]
    return padded[rank::ranks]


def _stem(number: int, prompt: str, copy: int | None) -> str:
    words = re.sub("[^a-z0-9]+", "-", prompt.lower()).strip("-")[:_LONGEST].strip("-")
    parts = [f"{number + 1:02d}", *([words] if words else []), *([] if copy is None else [str(copy + 1)])]
    return "_".join(parts)
