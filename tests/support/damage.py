"""Ways to spoil a dataset on disk."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load, save

from shards.dataset.encoding import JOB
from shards.dataset.index import index
from shards.dataset.manifest import Manifest, read_manifest, write_manifest
from shards.dataset.opened import open_dataset
from shards.prepare.work.job import Job
from shards.storage import Folder

Member = tuple[str, bytes]
UNFINISHED = "{}: encoding is unfinished (2 of 5 units): run the same `ltx-shards encode` again"


def members(path: Path) -> list[Member]:
    """Names and bytes of a tar."""
    with tarfile.open(path) as tar:
        return [(info.name, tar.extractfile(info).read()) for info in tar]  # type: ignore[union-attr]


def write_tar(path: Path, found: Iterable[Member]) -> Path:
    """A tar of these members, as other tools write it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for name, body in found:
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(body), 1234567890
            tar.addfile(info, io.BytesIO(body))
    return path


def shard_of(root: Path, row: int) -> Path:
    """The shard that a row of the manifest is in."""
    manifest = read_manifest(root)
    return root / manifest.shards[manifest.shard[row]]


def flip(root: Path, row: int) -> None:
    """One bit of the last number of a sample."""
    manifest, path = read_manifest(root), shard_of(root, row)
    data = bytearray(path.read_bytes())
    data[int(manifest.offset[row] + manifest.nbytes[row]) - 1] ^= 1
    path.write_bytes(data)


def cut(root: Path, row: int) -> None:
    """End the shard in the middle of a row's payload."""
    manifest, path = read_manifest(root), shard_of(root, row)
    path.write_bytes(path.read_bytes()[: int(manifest.offset[row] + manifest.nbytes[row] // 2)])


def replace_member(root: Path, row: int, extension: str, change: Callable[[bytes], bytes | None]) -> None:
    """Another member in its shard, or none; the manifest stays as it is."""
    key, path = str(read_manifest(root).keys[row]), shard_of(root, row)
    changed = [(name, change(body) if name == f"{key}.{extension}" else body) for name, body in members(path)]
    write_tar(path, [(name, body) for name, body in changed if body is not None])


def edit_json(root: Path, row: int, **values: Any) -> None:
    """Other values in a sample's json; None takes one out."""

    def change(body: bytes) -> bytes:
        merged = json.loads(body) | values
        return json.dumps({name: value for name, value in merged.items() if value is not None}).encode()

    replace_member(root, row, "json", change)


def edit_tensors(
    root: Path, row: int, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
) -> None:
    """Other tensors in a sample, as if it had been encoded so: the manifest follows."""

    def written(body: bytes) -> bytes:
        return save({name: tensor.clone().contiguous() for name, tensor in change(load(body)).items()})

    replace_member(root, row, "safetensors", written)
    reindex(root)


def reindex(root: Path) -> None:
    """The manifest of the shards as they are."""
    index(root, threads=1)


def edit_manifest(root: Path, **columns: Callable[[np.ndarray], np.ndarray]) -> None:
    """Other columns in the manifest, checked by nobody."""
    manifest = read_manifest(root)
    changed = {name: change(getattr(manifest, name).copy()) for name, change in columns.items()}
    write_manifest(root, replace(manifest, **changed))


def edit_description(root: Path, **values: Any) -> None:
    """Other values in dataset.json."""
    path = root / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def manifest_of(root: Path) -> Manifest:
    """The manifest of a dataset that opens."""
    return open_dataset(root).manifest


def half_encoded(root: Path, units: int, done: int) -> None:
    """As `encode` leaves a folder when it is killed: its notes, and neither description nor manifest."""
    Job(Folder(root), JOB, units, {})
    for number in range(done):
        Folder(root).write(f"{JOB}/units/{number:06d}.json", b"{}")
    for name in ("dataset.json", "manifest.parquet"):
        (root / name).unlink(missing_ok=True)
