"""The linear layers that `lora.target_modules` names. Imports without torch."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from shards.errors import InputError


def check_targets(linear: Sequence[str], target_modules: Sequence[str]) -> None:
    """Raise InputError, with the nearest names that do, on a name in which none of the `linear` layers' ends."""
    if not target_modules:
        raise InputError(
            "lora.target_modules is empty; name linear layers, for example to_q, to_k, to_v, to_out.0"
        )
    known = sorted({suffix for name in linear for suffix in _suffixes(name)})
    for target in target_modules:
        if target not in known:
            near = get_close_matches(target, known, n=4, cutoff=0.3) or ["to_q", "to_k", "to_v", "to_out.0"]
            raise InputError(
                f"lora.target_modules: {target!r} names no linear layer of the model; nearest:"
                f" {', '.join(near)}"
            )


def _suffixes(name: str) -> list[str]:
    """`a.b.0` -> `a.b.0`, `b.0`, `0`: what peft accepts for the layer."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]
