"""Checkpoints: folders that are complete or absent, cut by rank when written and by slice when read.

    checkpoints/step_000500/rank_00000_000.safetensors   float32 slices: "master:<parameter>", "exp_avg:<parameter>"..
    checkpoints/step_000500/checkpoint.json              step, shapes, and which file holds which slice
    checkpoints/latest                                   name of the newest complete one

A slice is found by parameter name and element range, so any number of ranks can read what any other number wrote.
Only trained parameters are in it: for LoRA the adapter, never the frozen base. No pickle anywhere.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from dist_trainer.dist import Gathering
from shards.atomic import replacing
from shards.errors import InputError

FORMAT = 1
MASTER = "master"
_FILE_BYTES = 2 << 30
_NAME = re.compile(r"step_(\d{6,})")
_META = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, the optimizer steps it has seen, and where its slices lie."""

    folder: Path
    step: int
    shapes: dict[str, tuple[int, ...]]
    files: tuple[str, ...]
    kinds: tuple[str, ...]
    slices: dict[str, list[tuple[int, int, int]]]
    _handles: dict[int, Any] = field(default_factory=dict, repr=False, compare=False)

    def read(
        self, name: str, start: int, stop: int, kinds: tuple[str, ...] | None = None
    ) -> dict[str, torch.Tensor]:
        """Elements [start, stop) of a parameter, flat float32: `master` and the optimizer's moments, or only `kinds`.

        Raises InputError when the checkpoint lacks them or a file is damaged.
        """
        parts: dict[str, torch.Tensor] = {}
        filled = 0
        for file, first, last in self.slices.get(name, ()):
            low, high = max(first, start), min(last, stop)
            if low >= high:
                continue
            for kind in self.kinds if kinds is None else kinds:
                target = parts.setdefault(kind, torch.empty(stop - start))
                target[low - start : high - start] = self._stored(
                    file, f"{kind}:{name}", low - first, high - first
                )
            filled += high - low
        if filled != stop - start:
            raise InputError(
                f"{self.folder}: holds no parameter {name} of this shape; was it trained in another mode?"
            )
        return parts

    def _stored(self, file: int, key: str, start: int, stop: int) -> torch.Tensor:
        path = self.folder / self.files[file]
        try:
            if file not in self._handles:
                self._handles[file] = safe_open(path, "pt")
            return self._handles[file].get_slice(key)[start:stop]
        except (OSError, SafetensorError) as error:
            raise InputError(f"{path}: damaged checkpoint file: {error}") from error


def save(
    folder: Path,
    step: int,
    shapes: dict[str, tuple[int, ...]],
    pieces: Iterable[tuple[str, int, int, dict[str, torch.Tensor]]],
    gathering: Gathering,
    keep_last_n: int,
) -> Path:
    """Write `folder/step_<step>` together with all ranks; `pieces` are this rank's (name, start, stop, tensors)."""
    world = gathering.world
    final = folder / f"step_{step:06d}"
    temporary = folder / f".{final.name}.tmp"
    if world.is_main:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        temporary.mkdir()
    gathering.meet(f"saving step {step}: begin")
    own = _write_own(temporary, world.rank, pieces)
    written = gathering.collect(f"saving step {step}: written", json.dumps(own))
    if world.is_main:
        _complete(
            temporary, final, step, shapes, [_Written(*part) for text in written for part in json.loads(text)]
        )
        point_latest(folder, step)
        prune(folder, keep_last_n)
    gathering.meet(f"saving step {step}: complete")
    return final


def newest(folder: Path) -> Checkpoint | None:
    """The complete checkpoint with the highest step below `folder`, or None."""
    steps = complete_steps(folder)
    return open_checkpoint(folder, steps[-1]) if steps else None


def complete_steps(folder: Path) -> list[int]:
    """Steps of the complete checkpoints, ascending. What a killed save left behind is not among them."""
    if not folder.is_dir():
        return []
    names = [(entry, _NAME.fullmatch(entry.name)) for entry in folder.iterdir()]
    return sorted(int(match[1]) for entry, match in names if match and (entry / _META).is_file())


def open_checkpoint(folder: Path, step: int) -> Checkpoint:
    """Open the checkpoint of a step. Raises InputError when it is absent, damaged or of a newer format."""
    path = folder / f"step_{step:06d}"
    try:
        meta = json.loads((path / _META).read_text(encoding="utf-8"))
        if meta["format"] > FORMAT:
            raise InputError(f"{path}: checkpoint format {meta['format']}; this version reads up to {FORMAT}")
        for entry in meta["files"]:
            if (path / entry["name"]).stat().st_size != entry["bytes"]:
                raise InputError(
                    f"{path / entry['name']}: not the {entry['bytes']} bytes that were saved; "
                    f"delete {path.name} to go on from the checkpoint before it"
                )
        return Checkpoint(
            folder=path,
            step=meta["step"],
            shapes={name: tuple(shape) for name, shape in meta["shapes"].items()},
            files=tuple(entry["name"] for entry in meta["files"]),
            kinds=tuple(meta["kinds"]),
            slices={name: [(f, a, b) for f, a, b in extents] for name, extents in meta["slices"].items()},
        )
    except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise InputError(f"{path}: not a complete checkpoint ({error})") from error


def point_latest(folder: Path, step: int) -> None:
    """Let `latest` name the checkpoint of a step."""
    _write(folder / "latest", f"step_{step:06d}\n")


def prune(folder: Path, keep_last_n: int) -> None:
    """Delete all but the newest `keep_last_n` complete checkpoints (below 1: keep all)."""
    if keep_last_n < 1:
        return
    for step in complete_steps(folder)[:-keep_last_n]:
        shutil.rmtree(_set_aside(folder / f"step_{step:06d}"))


class _Written(NamedTuple):
    """One file a rank wrote: its name, the kinds of tensors in it, and name, start, stop of each slice."""

    file: str
    kinds: list[str]
    extents: list[tuple[str, int, int]]


def _write_own(
    folder: Path, rank: int, pieces: Iterable[tuple[str, int, int, dict[str, torch.Tensor]]]
) -> list[_Written]:
    """Write this rank's slices, in files small enough that the host never holds a copy of its whole share."""
    written: list[_Written] = []
    tensors: dict[str, torch.Tensor] = {}

    def finish() -> None:
        save_file(tensors, folder / written[-1].file)
        _sync(folder / written[-1].file)
        tensors.clear()

    def begin() -> None:
        written.append(_Written(f"rank_{rank:05d}_{len(written):03d}.safetensors", [], []))

    begin()
    for name, start, stop, values in pieces:
        if sum(tensor.nbytes for tensor in tensors.values()) >= _FILE_BYTES:
            finish()
            begin()
        part = written[-1]
        part.extents.append((name, start, stop))
        part.kinds.extend(kind for kind in values if kind not in part.kinds)
        tensors.update({f"{kind}:{name}": value.contiguous() for kind, value in values.items()})
    finish()
    return written


def _complete(
    temporary: Path, final: Path, step: int, shapes: dict[str, tuple[int, ...]], written: list[_Written]
) -> None:
    slices: dict[str, list[tuple[int, int, int]]] = {name: [] for name in shapes}
    files = []
    for index, own in enumerate(written):
        files.append({"name": own.file, "bytes": (temporary / own.file).stat().st_size})
        for parameter, start, stop in own.extents:
            slices[parameter].append((index, start, stop))
    meta = {
        "format": FORMAT,
        "step": step,
        "shapes": shapes,
        "kinds": list(dict.fromkeys(kind for own in written for kind in own.kinds)),
        "files": files,
        "slices": slices,
    }
    _write(temporary / _META, json.dumps(meta))
    _sync(temporary)
    before = _set_aside(final) if final.exists() else None
    os.rename(temporary, final)
    _sync(final.parent)
    if before:
        shutil.rmtree(before)


def _set_aside(checkpoint: Path) -> Path:
    """Take a checkpoint's name away: a deletion cut short must not leave something that looks complete."""
    aside = checkpoint.with_name(f".{checkpoint.name}.old")
    shutil.rmtree(aside, ignore_errors=True)
    checkpoint.rename(aside)
    return aside


def _sweep(folder: Path) -> None:
    """Delete what killed saves and deletions left behind."""
    for leftover in folder.glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)
    for leftover in folder.glob(".latest.*.tmp"):
        leftover.unlink(missing_ok=True)


def _write(path: Path, content: str) -> None:
    with replacing(path) as file:
        file.write(content.encode())


def _sync(path: Path) -> None:
    """Make a file's bytes, or the renames within a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
