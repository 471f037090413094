"""Where the weights of a transformer lie, told from names and headers alone. Imports without torch."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from dist_trainer.model.family import WEIGHTS
from shards.errors import InputError

_SETTING = "model.model_source"


class Stored(NamedTuple):
    """Where a tensor lies: its file and its name there."""

    file: Path
    name: str


def stored_tensors(place: Path, setting: str = _SETTING) -> dict[str, Stored]:
    """Parameter name -> where its tensor lies, for a folder in diffusers' layout or a file in the original one.

    Raises InputError, naming `setting`, where there are no such weights.
    """
    if place.is_file():
        from diffusers.loaders.single_file_utils import convert_ltx_transformer_checkpoint_to_diffusers

        with opened(place, "np", setting) as stored:
            originals = {name: name for name in stored.keys()}  # noqa: SIM118 - safe_open is no mapping
        # The conversion only renames, so names can stand in for the tensors.
        renamed = convert_ltx_transformer_checkpoint_to_diffusers(originals)
        # A model that was compiled may have been saved with the compiler's wrapper in its names.
        return {name.replace("_orig_mod.", ""): Stored(place, original) for name, original in renamed.items()}
    index = place / f"{WEIGHTS}.index.json"
    if index.is_file():
        try:
            weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
            return {name: Stored(place / file, name) for name, file in weight_map.items()}
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{setting}: {index}: not an index of weights: {error}") from error
    single = place / WEIGHTS
    if not single.is_file():
        raise InputError(f"{setting}: {place}: no {WEIGHTS} (weights must be safetensors)")
    with opened(single, "np", setting) as stored:
        return {name: Stored(single, name) for name in stored.keys()}  # noqa: SIM118


@contextmanager
def opened(path: Path, framework: str, setting: str = _SETTING) -> Iterator[Any]:
    """A safetensors file, its tensors of a `framework`: "pt" or "np". Raises InputError for one absent or damaged."""
    if not path.is_file():
        raise InputError(f"{setting}: {path}: weights file named by the index is missing")
    try:
        with safe_open(path, framework) as stored:
            yield stored
    except (OSError, SafetensorError) as error:
        raise InputError(f"{setting}: {path}: damaged weights file: {error}") from error


def shapes_of(stored: Mapping[str, Stored]) -> dict[str, tuple[int, ...]]:
    """Shape of each tensor, by parameter name. Raises InputError for a file that is missing or cut."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in sorted({place.file for place in stored.values()}):
        with opened(path, "np") as file:
            own = {name: place.name for name, place in stored.items() if place.file == path}
            shapes |= {name: tuple(file.get_slice(there).get_shape()) for name, there in own.items()}
    return shapes
