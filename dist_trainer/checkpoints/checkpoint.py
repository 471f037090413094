"""Checkpoints: folders that are complete or absent, cut by rank when written and by slice when read.

    checkpoints/step_000500/rank_00000_000.safetensors   float32 slices: "master:<parameter>", "exp_avg:<parameter>"..
    checkpoints/step_000500/checkpoint.json              step, shapes, which file holds which slice, and checksums
    checkpoints/latest                                   name of the newest complete one

A slice is found by parameter name and element range, so any number of ranks can read what any other number wrote.
Only trained parameters are in it: for LoRA the adapter, never the frozen base. No pickle anywhere.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open

from dist_trainer.checkpoints.kept import META, complete_steps, name_of
from shards.errors import InputError

FORMAT = 1
MASTER = "master"
EMA = "ema"  # the running mean of the weights, where a run keeps one
_CHUNK_BYTES = 16 << 20
# What a file system says of a file that is gone or that its disk cannot give back; anything else may pass.
_LOST = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO, errno.ENODATA, errno.EUCLEAN, errno.EBADMSG)


class Damaged(InputError):
    """A checkpoint is not what was saved; `file` is the number of the file that is not, None for checkpoint.json."""

    def __init__(self, message: str, file: int | None = None) -> None:
        super().__init__(message)
        self.file = file


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: its folder, the optimizer steps it has seen, and where its slices lie.

    `sums` are the XXH3 checksums of `files`, None where a checkpoint was saved without.
    """

    folder: Path
    step: int
    shapes: dict[str, tuple[int, ...]]
    files: tuple[str, ...]
    sums: tuple[int | None, ...]
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
            raise Damaged(f"{path}: damaged checkpoint file: {error}", file) from error

    def verify(self, file: int) -> None:
        """Read a file whole, by its number. Raises Damaged when its bytes are not those that were saved."""
        path, expected = self.folder / self.files[file], self.sums[file]
        if expected is None:
            return
        with _reading(path, file):
            found = sum_of(path)
        if found != expected:
            raise Damaged(f"{path}: other bytes than were saved (checksum)", file)


def newest(folder: Path) -> Checkpoint | None:
    """The complete checkpoint with the highest step below `folder`, or None."""
    steps = complete_steps(folder)
    return open_checkpoint(folder, steps[-1]) if steps else None


def open_checkpoint(folder: Path, step: int, share: slice = slice(None)) -> Checkpoint:
    """Open the checkpoint of a step; its files (of their numbers, `share`) have the size they were saved with.

    Raises Damaged when it is absent or damaged, InputError when it is of a newer format or may not be read.
    """
    path = folder / name_of(step)
    with _reading(path / META, None):
        text = (path / META).read_text(encoding="utf-8", errors="replace")
    try:
        meta = json.loads(text)
        if meta["format"] > FORMAT:
            raise InputError(f"{path}: checkpoint format {meta['format']}; this version reads up to {FORMAT}")
        if meta.pop("xxh3", None) not in (None, sum_of_meta(meta)):
            raise Damaged(f"{path / META}: not what was saved")
        for number, entry in list(enumerate(meta["files"]))[share]:
            with _reading(path / entry["name"], number):
                found = (path / entry["name"]).stat().st_size
            if found != entry["bytes"]:
                raise Damaged(
                    f"{path / entry['name']}: {found} bytes, not the {entry['bytes']} saved", number
                )
        return Checkpoint(
            folder=path,
            step=meta["step"],
            shapes={name: tuple(shape) for name, shape in meta["shapes"].items()},
            files=tuple(entry["name"] for entry in meta["files"]),
            sums=tuple(entry.get("xxh3") for entry in meta["files"]),
            kinds=tuple(meta["kinds"]),
            slices={name: [(f, a, b) for f, a, b in extents] for name, extents in meta["slices"].items()},
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise Damaged(f"{path}: not a complete checkpoint ({error})") from error


def sum_of(path: Path) -> int:
    """The XXH3 checksum of a file's bytes. Raises OSError when it cannot be read."""
    sum_ = xxhash.xxh3_64()
    buffer = memoryview(bytearray(_CHUNK_BYTES))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            sum_.update(buffer[:count])
    return sum_.intdigest()


def sum_of_meta(meta: dict[str, Any]) -> int:
    """The XXH3 checksum of what checkpoint.json holds beside it."""
    return xxhash.xxh3_64_intdigest(json.dumps(meta).encode())


@contextmanager
def _reading(path: Path, file: int | None) -> Iterator[None]:
    """Raise Damaged for a file that is lost, InputError for one that may not be read; other faults as they are."""
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}; allow it") from error
    except OSError as error:
        if error.errno not in _LOST:
            raise
        raise Damaged(f"{path}: {error.strerror}", file) from error
