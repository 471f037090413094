"""A file of a LoRA, in diffusers' or ComfyUI's keys: its modules, and how strong each is. Imports without torch."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from dist_trainer.model.ltx.names import diffusers_name
from dist_trainer.model.start import SETTING
from dist_trainer.model.weights import opened
from shards.errors import InputError

_PREFIXES = ("transformer.", "diffusion_model.", "base_model.model.")
# The two ways to name a pair: peft's and kohya's; `.default` is peft's name of the adapter itself.
_TENSOR = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<peft>[AB])(?:\.default)?\.weight|lora_(?P<kohya>down|up)\.weight)"
)
_METADATA = "lora_adapter_metadata"


class Pair(NamedTuple):
    """A module's tensors by their names in the file, A [rank, in] and B [out, rank]; their rank; B @ A's factor."""

    down: str
    up: str
    rank: int
    scale: float


@dataclass(frozen=True)
class AdapterFile:
    """The pairs of a file by the module's name in diffusers' model."""

    path: Path
    pairs: Mapping[str, Pair]


def read_adapter(path: Path) -> AdapterFile:
    """Look at a LoRA's file. One that tells no alpha is as strong as diffusers and ComfyUI take it: alpha is the rank.

    Raises InputError when it is damaged, or holds what is no plain LoRA.
    """
    with opened(path, "pt", SETTING) as file:
        names, metadata = list(file.keys()), file.metadata() or {}
        ends: dict[str, dict[str, str]] = {}
        strange = []
        for name in names:
            if match := _TENSOR.fullmatch(name):
                end = match["peft"] or {"down": "A", "up": "B"}[match["kohya"]]
                ends.setdefault(match["module"], {})[end] = name
            elif not name.endswith(".alpha"):
                strange.append(name)
        strange += [name for name in names if not _is_sound(name, file.get_slice(name).get_shape())]
        strange += [module for module, pair in ends.items() if len(pair) < 2]
        if strange or not ends:
            example = f" ({strange[0]})" if strange else ""
            raise InputError(f"{SETTING}: {path}: holds tensors that are no LoRA's pairs of A and B{example}")
        alphas = {
            name.removesuffix(".alpha"): float(file.get_tensor(name))
            for name in names
            if name.endswith(".alpha")
        }
        pairs, told = {}, _told_scale(metadata)
        for module, pair in ends.items():
            rank = int(file.get_slice(pair["A"]).get_shape()[0])
            plain = _plain(module)
            scale = alphas[module] / rank if module in alphas else told(plain, rank)
            pairs[plain] = Pair(pair["A"], pair["B"], rank, scale)
    return AdapterFile(path, pairs)


def _plain(module: str) -> str:
    prefix = next((prefix for prefix in _PREFIXES if module.startswith(prefix)), "")
    return diffusers_name(module.removeprefix(prefix))


def _is_sound(name: str, shape: Sequence[int]) -> bool:
    """Whether a tensor has the shape of what its name says: an alpha is one number, A and B are matrices."""
    return math.prod(shape) == 1 if name.endswith(".alpha") else len(shape) == 2 and 0 not in shape


def _told_scale(metadata: Mapping[str, str]) -> Callable[[str, int], float]:
    """The scale of a module of a rank as a header of diffusers tells it; 1 where it tells nothing."""
    try:
        settings = json.loads(metadata.get(_METADATA, "{}"))
        alpha, pattern = (
            settings.get("transformer.lora_alpha"),
            settings.get("transformer.alpha_pattern") or {},
        )
        own = {name: float(value) for name, value in pattern.items()}
        common = None if alpha is None else float(alpha)
        by_root = settings.get("transformer.use_rslora") is True
    except (ValueError, AttributeError, TypeError):
        own, common, by_root = {}, None, False

    def scale(module: str, rank: int) -> float:
        alpha = own.get(module, common)
        return 1.0 if alpha is None else alpha / (math.sqrt(rank) if by_root else rank)

    return scale
