"""Which samples of a dataset to decode, and how."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from shards.dataset.opened import Dataset
from shards.errors import InputError
from shards.hashing import mix

_SEARCHED = 20_000  # keys that are compared letter by letter for near matches
_NAMED = 3


@dataclass(frozen=True)
class DecodeOptions:
    """Which samples, and how. `keys`, else `random` many by `seed`, else the `first` ones.

    `timestep` and `noise_scale` are for VAEs that denoise a little as they decode (0.9.1 and later), as
    LTXPipeline's `decode_timestep` and `decode_noise_scale` (None: as `timestep`); at 0 they add nothing.
    """

    keys: tuple[str, ...] = ()
    first: int = 8
    random: int | None = None
    seed: int = 42
    timestep: float = 0.0
    noise_scale: float | None = None
    device: str = "auto"
    dtype: str = "auto"
    vae_tiling: bool = False
    force: bool = False  # although the VAE is not the one the samples were encoded with
    crf: int = 16


DEFAULTS = DecodeOptions()


def check(options: DecodeOptions) -> None:
    """Raise `InputError` naming the first option that makes no sense."""
    for name in ("first", "random"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value} must be at least 1")
    for name in ("timestep", "noise_scale"):
        value = getattr(options, name)
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"--decode-{name.replace('_', '-')} {value:g} must be between 0 and 1")
    if not 0 <= options.crf <= 51:
        raise InputError(f"--crf {options.crf} must be between 0 (lossless) and 51")


def choose(dataset: Dataset, options: DecodeOptions) -> list[int]:
    """Manifest rows of the samples to decode. Raises `InputError` for unknown keys, with keys like them."""
    manifest = dataset.manifest
    if options.keys:
        number = {key: row for row, key in enumerate(manifest.keys.tolist())}
        unknown = [key for key in options.keys if key not in number]
        if unknown:
            raise InputError(f"{dataset.root} has no sample {unknown[0]!r}{_near(unknown[0], list(number))}")
        return [number[key] for key in dict.fromkeys(options.keys)]
    if options.random is not None:
        order = np.argsort(mix(options.seed, manifest.ids), kind="stable")
        return sorted(order[: options.random].tolist())
    return list(range(min(options.first, len(manifest))))


def _near(key: str, keys: Sequence[str]) -> str:
    """Keys like `key`, as the end of a message."""
    found = [other for other in keys if key in other][:_NAMED]
    found = found or difflib.get_close_matches(key, keys[:_SEARCHED], _NAMED)
    return f"; there are {', '.join(map(repr, found))}" if found else f"; the first is {keys[0]!r}"
