"""Saving a checkpoint, all ranks together: complete afterwards or not there, whatever dies or fills up on the way.

A temporary folder, each rank's files, fsync, checkpoint.json, fsync, one rename, then `latest`, then the old ones go.
"""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from dist_trainer.checkpoints.checkpoint import FORMAT, sum_of, sum_of_meta
from dist_trainer.checkpoints.kept import META, name_of, point_latest, prune, sweep, take_name
from dist_trainer.dist import Gathering
from dist_trainer.rundir import write_text
from dist_trainer.watch import progress
from shards.errors import InputError

Piece = tuple[str, int, int, dict[str, torch.Tensor]]

_FILE_BYTES = 2 << 30
_ROOM_BYTES = 1 << 20  # beside the tensors: their names, checkpoint.json
# The file system, the user's quota or the process's own limit is full.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_RUST_ERRNO = re.compile(r"\(os error (\d+)\)")


class NoRoom(InputError):
    """There is no room for a checkpoint; nothing of it is left, and those before are as they were."""


def save(
    folder: Path,
    step: int,
    shapes: dict[str, tuple[int, ...]],
    pieces: Iterable[Piece],
    gathering: Gathering,
    keep_last_n: int,
) -> Path:
    """Write `folder/step_<step>` together with all ranks; `pieces` are this rank's (name, start, stop, tensors).

    Raises NoRoom, alike on every rank, when the disk has too little space or gets full on the way.
    """
    main = gathering.world.is_main
    final = folder / name_of(step)
    temporary = folder / f".{final.name}.tmp"
    element_bytes, pieces = _looked_at(pieces)
    needed = element_bytes * sum(math.prod(shape) for shape in shapes.values()) + _ROOM_BYTES
    lacking = gathering.share(f"saving step {step}: begin", _prepare(temporary, needed) if main else "")
    if lacking:
        raise NoRoom(lacking)
    own = _write_own(temporary, gathering.world.rank, pieces)
    written = gathering.collect(f"saving step {step}: written", json.dumps(own))
    full = ""
    if main:
        full = _finish(temporary, final, step, shapes, [json.loads(text) for text in written], keep_last_n)
    full = gathering.share(f"saving step {step}: complete", full)
    if full:
        raise NoRoom(full)
    return final


class _Written(NamedTuple):
    """One file a rank wrote: name, bytes, checksum, the kinds of tensors in it; name, start, stop of each slice."""

    file: str
    bytes: int
    sum: int
    kinds: list[str]
    extents: list[tuple[str, int, int]]


@contextmanager
def heeding_room(folder: Path) -> Iterator[None]:
    """Within it, a full disk is the user's matter, not a crash: InputError that names the file, or `folder`."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        number = _errno(error)
        if number not in _FULL:
            raise
        place = getattr(error, "filename", None) or folder
        raise InputError(
            f"{place}: {os.strerror(number)}; make room there, and start the same command again"
        ) from error


def _looked_at(pieces: Iterable[Piece]) -> tuple[int, Iterator[Piece]]:
    """Bytes of a parameter's element, all kinds together (0: this rank has no pieces), and the pieces again."""
    rest = iter(pieces)
    for first in rest:
        _, start, stop, values = first
        return sum(tensor.nbytes for tensor in values.values()) // (stop - start), itertools.chain(
            [first], rest
        )
    return 0, rest


def _prepare(temporary: Path, needed: int) -> str:
    """Make the temporary folder, if there is room; otherwise say what is lacking."""
    folder = temporary.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
        disk = os.statvfs(folder)
        free = disk.f_bavail * disk.f_frsize
        # A file system that knows no size of its own says 0 blocks.
        if disk.f_blocks and free < needed:
            return f"{folder}: a checkpoint needs {_size(needed)}, {_size(free)} are free"
        temporary.mkdir()
    except OSError as error:
        if error.errno not in _FULL:
            raise
        return f"{folder}: {error.strerror}"
    return ""


def _write_own(folder: Path, rank: int, pieces: Iterable[Piece]) -> list[_Written] | str:
    """Write this rank's slices and return what was written; or, in words, that the disk is full."""
    written: list[_Written] = []
    try:
        for part in _by_file(pieces):
            name = f"rank_{rank:05d}_{len(written):03d}.safetensors"
            written.append(_write_file(folder / name, part))
    except (OSError, SafetensorError) as error:
        number = _errno(error)
        if number not in _FULL:
            raise
        return f"{folder.parent}: {os.strerror(number)} while rank {rank} wrote to it"
    return written


def _by_file(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """The pieces of one file after another, one at least: small, so that the host never holds a whole share twice."""
    part: list[Piece] = []
    held = 0
    for piece in pieces:
        if held >= _FILE_BYTES:
            yield part
            part, held = [], 0
        part.append(piece)
        held += sum(tensor.nbytes for tensor in piece[3].values())
    yield part


def _write_file(path: Path, part: list[Piece]) -> _Written:
    tensors = {
        f"{kind}:{name}": value.contiguous() for name, _, _, kinds in part for kind, value in kinds.items()
    }
    save_file(tensors, path)
    _sync(path)
    progress.moved()
    kinds = dict.fromkeys(kind for *_, values in part for kind in values)
    extents = [(name, start, stop) for name, start, stop, _ in part]
    return _Written(path.name, path.stat().st_size, sum_of(path), list(kinds), extents)


def _finish(
    temporary: Path,
    final: Path,
    step: int,
    shapes: dict[str, tuple[int, ...]],
    written: list[list[Any] | str],
    keep_last_n: int,
) -> str:
    """Make a checkpoint of what all ranks wrote; or take it away and say that the disk is full."""
    full = next((own for own in written if isinstance(own, str)), "")
    try:
        if not full:
            _complete(temporary, final, step, shapes, [_Written(*file) for own in written for file in own])
            point_latest(final.parent, step)
            prune(final.parent, keep_last_n, step)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        # With its name it is saved; the next save or launch puts `latest` right.
        full = "" if final.exists() and not temporary.exists() else f"{final.parent}: {error.strerror}"
    if full:
        shutil.rmtree(temporary, ignore_errors=True)
    return full


def _complete(
    temporary: Path, final: Path, step: int, shapes: dict[str, tuple[int, ...]], written: list[_Written]
) -> None:
    slices: dict[str, list[tuple[int, int, int]]] = {name: [] for name in shapes}
    files = []
    for index, own in enumerate(written):
        seen = (temporary / own.file).stat().st_size
        if seen != own.bytes:
            raise InputError(
                f"{final.parent}: rank 0 sees {seen} of the {own.bytes} bytes of {own.file} that its rank wrote; "
                "is the same folder mounted on every host?"
            )
        files.append({"name": own.file, "bytes": own.bytes, "xxh3": own.sum})
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
    write_text(temporary / META, json.dumps({**meta, "xxh3": sum_of_meta(meta)}))
    _sync(temporary)
    before = take_name(final) if final.exists() else None
    os.rename(temporary, final)
    _sync(final.parent)
    if before:
        shutil.rmtree(before)


def _errno(error: Exception) -> int:
    """The system's number of an error; safetensors has it in words only."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = _RUST_ERRNO.search(str(error))
    return int(found[1]) if found else 0


def _size(nbytes: float) -> str:
    return f"{nbytes / 2**30:.1f} GiB" if nbytes >= 2**30 else f"{nbytes / 2**20:.1f} MiB"


def _sync(path: Path) -> None:
    """Make a file's bytes, or the renames within a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
