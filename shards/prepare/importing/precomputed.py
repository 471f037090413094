"""LTX-Video-Trainer's preprocessed folders: which files belong together, and the tensors in them.

    .precomputed/latents/<media path>.pt       latents [L,C] (tokens in the order f, h, w) or [C,F,H,W], num_frames,
                                               height, width (of the latents) and, since April 2025, fps
    .precomputed/conditions/<media path>.pt    prompt_embeds [T,D], prompt_attention_mask [T]
    .precomputed/<any name>/<media path>.pt    latents of reference clips

Until May 2025 the names were ``latent_00000012.pt`` and ``condition_00000012.pt``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from torch import Tensor

from shards.errors import InputError
from shards.formats.text import key_fault, printable
from shards.prepare.failures import Failure, reason_for
from shards.prepare.importing.pt import FileError, load, number, plain, tensor

LATENTS, CONDITIONS, REFERENCES = "latents", "conditions", "reference_latents"


class Trio(NamedTuple):
    """Files of one sample, relative to the folder, in the order of the reference folders asked for."""

    latents: str
    condition: str
    references: tuple[str, ...]


@dataclass(frozen=True)
class Found:
    """What a folder holds: whole samples, files without partner, and reference folders with how many of the
    latents' names each has."""

    root: Path
    samples: tuple[Trio, ...]
    orphans: tuple[Failure, ...]
    references: dict[str, int]  # of every folder that could be one
    taken: tuple[str, ...]  # of those, the ones in `samples`


class Contents(NamedTuple):
    """Tensors of a sample, with the numbers of the files."""

    latents: Tensor  # [C,F,H,W]
    prompt_embeds: Tensor  # [T,D], real tokens only
    references: tuple[Tensor, ...]  # [C,F',H',W']
    fps: float | None  # None where the file has none


def locate(root: Path) -> Path:
    """The folder with latents/ and conditions/: ``root`` or ``root/.precomputed``. InputError if neither is."""
    for folder in (root / ".precomputed", root):
        if (folder / LATENTS).is_dir() and (folder / CONDITIONS).is_dir():
            return folder
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    lacking = " and ".join(f"{name}/" for name in (LATENTS, CONDITIONS) if not (root / name).is_dir())
    raise InputError(
        f"{root} has no {lacking}: give the .precomputed folder that LTX-Video-Trainer wrote, or the folder it is in"
    )


def survey(root: Path, references: Sequence[str] | None = None) -> Found:
    """Find the samples below ``root`` by the files' names alone.

    ``references`` names the folders of reference latents, in the order they take in a sample; None takes
    ``reference_latents`` where there is one. A sample is whole when it has a file in each. Raises InputError when
    there are no latents, or a folder that was named is not there.
    """
    folder = locate(root)
    latents = _names(folder / LATENTS)
    if not latents:
        raise InputError(f"{folder / LATENTS} holds no .pt file: nothing to import")
    candidates = _reference_folders(folder, set(latents))
    taken = tuple(references) if references is not None else tuple({REFERENCES} & candidates.keys())
    for name in taken:
        if not (folder / name).is_dir() or name in (LATENTS, CONDITIONS):
            raise InputError(f"--reference-dir {name}: {folder} has {', '.join(candidates) or 'none'}")
    held = {name: set(_names(folder / name)) for name in (CONDITIONS, *taken)}
    samples, orphans, used = [], [], set()
    for name in latents:
        if fault := key_fault(name):
            orphans.append(Failure(printable(f"{LATENTS}/{name}"), f"its name {fault}"))
            continue
        condition = _condition(name, held[CONDITIONS])
        lacking = [f"{other}/{name}" for other in taken if name not in held[other]]
        if condition is None:
            orphans.append(Failure(f"{LATENTS}/{name}", "no text embedding of this name in conditions/"))
            continue
        used.add(condition)
        if lacking:
            orphans.append(Failure(f"{LATENTS}/{name}", f"no reference {', '.join(lacking)}"))
            continue
        files = tuple(f"{other}/{name}" for other in taken)
        samples.append(Trio(f"{LATENTS}/{name}", f"{CONDITIONS}/{condition}", files))
    for other in (CONDITIONS, *taken):
        left = sorted(held[other] - (used if other == CONDITIONS else set(latents)))
        orphans += [Failure(printable(f"{other}/{name}"), "no latents of this name") for name in left]
    return Found(folder, tuple(samples), tuple(orphans), candidates, taken)


def _names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.pt") if path.is_file())


def _reference_folders(folder: Path, latents: set[str]) -> dict[str, int]:
    """Folders beside latents/ with files of the same names, and how many."""
    beside = sorted(path for path in folder.iterdir() if path.is_dir())
    counts = {
        path.name: len(latents & set(_names(path)))
        for path in beside
        if path.name not in (LATENTS, CONDITIONS)
    }
    return {name: count for name, count in counts.items() if count}


def _condition(latents: str, conditions: set[str]) -> str | None:
    """The text embedding's name for a latents file: the same, or condition_X for latent_X."""
    path = PurePosixPath(latents)
    names = [latents]
    if path.name.startswith("latent_"):
        legacy = f"condition_{path.name.removeprefix('latent_')}"
        names += [path.with_name(legacy).as_posix(), legacy]
    return next((name for name in names if name in conditions), None)


def read_sample(root: Path, files: Trio) -> Contents:
    """Load the files of one sample. Raises FileError naming the file and what is wrong with it.

    Nothing is computed: the latents' tokens are put in another order, the padding of the text is cut off. Call it
    inside ``plain_numbers()``.
    """
    name = files.latents
    try:
        stored = load(root / name)
        latents, fps = _latents(stored), _rate(stored)
        name = files.condition
        embeds = _embeds(load(root / name))
        references = []
        for name in files.references:
            references.append(_latents(load(root / name)))
    except FileError as error:
        raise FileError(f"{name}: {error}") from error
    except Exception as error:  # a file of others may do what no check has thought of
        raise FileError(f"{name}: {reason_for(error)}") from error
    return Contents(latents, embeds, tuple(references), fps)


def _latents(stored: dict[str, Any]) -> Tensor:
    """Latents [C,F,H,W], contiguous, from [L,C] or [C,F,H,W], either with a batch of one."""
    latents = tensor(stored, "latents")
    if latents.ndim in (3, 5) and latents.shape[0] == 1:
        latents = latents[0]
    shape = tuple(latents.shape)
    sizes = tuple(_size(stored, name) for name in ("num_frames", "height", "width"))
    if latents.ndim == 4:
        if any(said not in (None, size) for said, size in zip(sizes, shape[1:], strict=True)):
            raise FileError(f"latents {shape} do not have the num_frames, height, width {sizes}")
        return latents.contiguous()
    if latents.ndim != 2:
        raise FileError(f"latents {shape} are neither [L, C] nor [C, F, H, W]")
    if None in sizes or math.prod(size or 0 for size in sizes) != shape[0]:
        raise FileError(f"latents of {shape[0]} tokens do not have the num_frames, height, width {sizes}")
    return latents.reshape(*(size or 0 for size in sizes), shape[1]).permute(3, 0, 1, 2).contiguous()


def _embeds(stored: dict[str, Any]) -> Tensor:
    """Text embedding [T,D] of the tokens that the mask keeps; padding may be on either side."""
    embeds, mask = tensor(stored, "prompt_embeds"), stored.get("prompt_attention_mask")
    embeds = embeds[0] if embeds.ndim == 3 and embeds.shape[0] == 1 else embeds
    if embeds.ndim != 2:
        raise FileError(f"prompt_embeds {tuple(embeds.shape)} are not [T, D]")
    if not isinstance(mask, Tensor) or plain(mask, "prompt_attention_mask").numel() != embeds.shape[0]:
        raise FileError(f"prompt_attention_mask of {embeds.shape[0]} tokens is missing: padding is not known")
    real = embeds[mask.reshape(-1) != 0]
    if not len(real):
        raise FileError("prompt_attention_mask keeps no token")
    return real


def _size(stored: dict[str, Any], name: str) -> int | None:
    value = number(stored, name)
    if value is not None and (value < 1 or value != int(value)):
        raise FileError(f"{name} is {value}, not a size")
    return None if value is None else int(value)


def _rate(stored: dict[str, Any]) -> float | None:
    fps = number(stored, "fps")
    if fps is not None and fps <= 0:
        raise FileError(f"fps {fps} is not positive")
    return None if fps is None else float(fps)
