"""Datasets with one thing wrong: what the doctor calls it, how often, and what a repair keeps."""

from __future__ import annotations

import base64
import shutil
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load, save

from shards.dataset.manifest import MANIFEST_NAME, read_manifest, write_manifest
from shards.dataset.selection import select
from tests.support.damage import (
    cut,
    edit_description,
    edit_json,
    edit_manifest,
    edit_tensors,
    flip,
    members,
    reindex,
    replace_member,
    shard_of,
    write_tar,
)
from tests.support.datasets import GRIDS, write_dataset

SAMPLES = 12
FIRST_SHARD = 4  # samples in it
Tensors = dict[str, torch.Tensor]
Spoil = Callable[[Path], object]


class Scenario(NamedTuple):
    """`found`: kind and count of all findings. `lost`: rows that a repair drops, `gained`: keys that it adds."""

    spoil: Spoil
    found: Mapping[str, int]
    lost: frozenset[int] = frozenset()
    mendable: bool = True
    gained: frozenset[str] = frozenset()


def sound_dataset(root: Path, seed: int = 0, prefix: str = "clips/") -> Path:
    """Twelve samples with a reference each, in three shards of four."""
    keys = [f"{prefix}{number:02d}" for number in range(SAMPLES)]
    write_dataset(root, SAMPLES, references=GRIDS, shard_bytes=9000, keys=keys, seed=seed)
    return root


def tensor(name: str, change: Callable[[torch.Tensor], torch.Tensor], row: int = 1) -> Spoil:
    """Another tensor in one sample, which the manifest knows."""
    return lambda root: edit_tensors(root, row, lambda all: all | {name: change(all[name])})


def last(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Another last number."""

    def change(values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        values.view(-1)[-1] = value
        return values

    return change


def copied(*names: str) -> Spoil:
    """Sample 4 gets tensors of sample 0, which has the same size."""

    def spoil(root: Path) -> None:
        found: Tensors = {}

        def remember(all: Tensors) -> Tensors:
            found.update({name: all[name] for name in names or all})
            return all

        edit_tensors(root, 0, remember)
        edit_tensors(root, 4, lambda all: all | found)

    return spoil


def without_rows(root: Path, *rows: int) -> None:
    """Samples that the manifest does not know."""
    kept = np.setdiff1d(np.arange(SAMPLES), rows)
    write_manifest(root, select(read_manifest(root), kept))


def packed_again(root: Path) -> None:
    """Another tool writes the first shard, its samples the other way round."""
    path = shard_of(root, 0)
    found = members(path)
    write_tar(path, [member for pair in range(len(found) - 2, -1, -2) for member in found[pair : pair + 2]])


def written_again(root: Path) -> None:
    """Another tool writes the first shard, of the same samples with other numbers and captions."""
    path = shard_of(root, 0)

    def other(name: str, body: bytes) -> bytes:
        if name.endswith(".json"):
            return body.replace(b'"caption": "', b'"caption": "' + b"longer " * 100)
        return save({name: tensor * 2 for name, tensor in load(body).items()})

    write_tar(path, [(name, other(name, body)) for name, body in members(path)])


def spoiled_header(root: Path) -> None:
    """One bit in the tar header of the second sample's first member."""
    path = shard_of(root, 0)
    with tarfile.open(path) as tar:
        place = tar.getmembers()[2].offset
    data = bytearray(path.read_bytes())
    data[place + 150] ^= 1
    path.write_bytes(data)


def cut_tail(root: Path) -> None:
    """The zeros that end a tar are gone."""
    manifest, path = read_manifest(root), shard_of(root, 0)
    end = int((manifest.offset + manifest.nbytes)[manifest.shard == 0].max())
    path.write_bytes(path.read_bytes()[:end])


def member_outside(root: Path) -> None:
    """A sample whose name leads out of the folder it is unpacked into."""
    path = shard_of(root, 0)
    found = members(path)
    write_tar(path, [*found, *((f"../x.{name.rpartition('.')[2]}", body) for name, body in found[:2])])


def stray(key: str, body: bytes) -> Spoil:
    """A shard that somebody added, of one sample."""
    meta = b'{"fps": 24, "caption": "a"}'
    return lambda root: write_tar(
        root / "shards/zz.tar", [(f"{key}.json", meta), (f"{key}.safetensors", body)]
    )


def manifest_of_another(prefix: str) -> Spoil:
    """The manifest of a dataset of the same shape, with these keys."""

    def spoil(root: Path) -> None:
        other = sound_dataset(root.parent / "strange", seed=5, prefix=prefix)
        shutil.copy(other / MANIFEST_NAME, root / MANIFEST_NAME)

    return spoil


def moved_twice(root: Path) -> None:
    """A row that the manifest has twice."""
    write_manifest(root, select(read_manifest(root), np.array([*range(SAMPLES), 3])))


def sample_in_two_shards(root: Path) -> None:
    """The first sample lies in a second shard too, which the manifest does not know."""
    write_tar(root / "shards/zz.tar", members(shard_of(root, 0))[:2])


def unreadable(root: Path) -> None:
    """A shard that opens, and gives an error when it is read."""
    path = shard_of(root, 0)
    path.unlink()
    path.symlink_to("/proc/self/mem")


def one_of(values: object, row: int = 1) -> Callable[[np.ndarray], np.ndarray]:
    """Another value in one row of a column."""

    def change(column: np.ndarray) -> np.ndarray:
        column[row] = values
        return column

    return change


def _lost(*rows: int) -> frozenset[int]:
    return frozenset(rows)


INTEGERS = save({"latents": torch.ones(4, 1, 2, 2, dtype=torch.int32), "prompt_embeds": torch.randn(3, 16)})
ENDLESS = b'{"latents": {"dtype": "F32", "shape": [1e400], "data_offsets": [0, 4]}}'
CORRUPT_JSON: Spoil = lambda root: replace_member(root, 1, "json", lambda body: body[:-1])  # noqa: E731
ALL = frozenset(range(SAMPLES))
SCENARIOS: dict[str, Scenario] = {
    "a flipped bit": Scenario(lambda root: flip(root, 1), {"checksum": 1}, _lost(1)),
    "a flipped bit in every sample of a shard": Scenario(
        lambda root: [flip(root, row) for row in range(FIRST_SHARD)],
        {"checksum": FIRST_SHARD},
        _lost(*range(FIRST_SHARD)),
    ),
    "a shard cut short": Scenario(lambda root: cut(root, 2), {"cut": 2, "structure": 1}, _lost(2, 3)),
    "a shard without its end": Scenario(cut_tail, {"structure": 1}),
    "a damaged tar header": Scenario(spoiled_header, {"structure": 1}),
    "a shard gone": Scenario(lambda root: shard_of(root, 0).unlink(), {"shard": 1}, _lost(0, 1, 2, 3)),
    "a shard packed again": Scenario(packed_again, {"place": FIRST_SHARD}),
    "a shard written again": Scenario(written_again, {"stale": FIRST_SHARD, "place": FIRST_SHARD}),
    "a sample gone": Scenario(
        lambda root: write_tar(shard_of(root, 3), members(shard_of(root, 3))[:-2]), {"row": 1}, _lost(3)
    ),
    "samples without a row": Scenario(lambda root: without_rows(root, 2, 5), {"stray": 2}),
    "a shard without rows": Scenario(
        lambda root: write_tar(root / "shards/zz.tar", renamed(root)),
        {"stray": 1, "copy": 1},
        gained=frozenset({"copy"}),
    ),
    "a sample in two shards": Scenario(sample_in_two_shards, {"stray": 1, "key": 1}),
    "a row there twice": Scenario(moved_twice, {"key": 1}),
    "no manifest": Scenario(lambda root: (root / MANIFEST_NAME).unlink(), {"manifest": 1, "stray": SAMPLES}),
    "a garbled manifest": Scenario(
        lambda root: (root / MANIFEST_NAME).write_bytes(b"PAR1"), {"manifest": 1, "stray": SAMPLES}
    ),
    "a manifest of other keys": Scenario(manifest_of_another("dogs/"), {"row": SAMPLES, "stray": SAMPLES}),
    "a manifest of other bytes": Scenario(
        manifest_of_another("clips/"), {"checksum": SAMPLES}, ALL, mendable=False
    ),
    "other sizes in the manifest": Scenario(
        lambda root: edit_manifest(root, grid=one_of((1, 4, 4))), {"shape": 1}
    ),
    "another rate in the manifest": Scenario(lambda root: edit_manifest(root, fps=one_of(99.0)), {"rate": 1}),
    "another id in the manifest": Scenario(lambda root: edit_manifest(root, ids=one_of(7)), {"id": 1}),
    "a json without its end": Scenario(CORRUPT_JSON, {"json": 1}, _lost(1)),
    "no json": Scenario(
        lambda root: replace_member(root, 3, "json", lambda _: None), {"members": 1}, _lost(3)
    ),
    "no tensors": Scenario(
        lambda root: replace_member(root, 3, "safetensors", lambda _: None), {"members": 1}, _lost(3)
    ),
    "a name that leads out": Scenario(member_outside, {"name": 1}),
    "a name that is no text": Scenario(stray("a\udcff", INTEGERS), {"name": 1}),
    "integer latents": Scenario(stray("a", INTEGERS), {"tensors": 1}),
    "latents of endless size": Scenario(
        stray("a", len(ENDLESS).to_bytes(8, "little") + ENDLESS + bytes(4)), {"tensors": 1}
    ),
    "a disk that fails": Scenario(unreadable, {"unreadable": 1 + FIRST_SHARD}, mendable=False),
    "a NaN": Scenario(tensor("latents", last(float("nan"))), {"nan": 1}, _lost(1)),
    "an infinite text": Scenario(tensor("prompt_embeds", last(float("-inf"))), {"nan": 1}, _lost(1)),
    "constant latents": Scenario(tensor("latents", torch.zeros_like), {"constant": 1}, _lost(1)),
    "a constant reference": Scenario(tensor("reference_latents", torch.ones_like), {"constant": 1}, _lost(1)),
    "equal frames": Scenario(tensor("latents", lambda x: x[:, :1].expand_as(x)), {"still": 1}),
    "a blank frame": Scenario(
        tensor("latents", lambda x: torch.cat([x[:, :1], torch.full_like(x[:, 1:], 0.5)], 1)), {"blank": 1}
    ),
    "no text": Scenario(tensor("prompt_embeds", lambda x: x[:0]), {"text": 1}, _lost(1)),
    "a cut caption": Scenario(
        tensor("prompt_embeds", lambda x: torch.randn(256, 16).to(x)), {"text limit": 1}
    ),
    "the target as its reference": Scenario(
        lambda root: edit_tensors(root, 1, lambda all: all | {"reference_latents": all["latents"]}),
        {"reference copy": 1},
        _lost(1),
    ),
    "a reference of no fraction": Scenario(
        tensor("reference_latents", lambda x: x[:, :, :3]), {"reference size": 1}, _lost(1)
    ),
    "a sample without a reference": Scenario(
        lambda root: edit_tensors(root, 1, lambda all: {k: v for k, v in all.items() if "ref" not in k}),
        {"some references": 1},
    ),
    "another number format": Scenario(tensor("latents", torch.Tensor.float), {"dtype": 1}),
    "a copy": Scenario(copied(), {"copy": 1}),
    "the same latents": Scenario(copied("latents"), {"same latents": 1}),
    "the same clip": Scenario(
        lambda root: (
            edit_json(root, 4, source="clips/00.mp4", fps=24.0) or edit_manifest(root, fps=one_of(24.0, 4))
        ),
        {"same clip": 1},
    ),
    "no caption": Scenario(lambda root: edit_json(root, 3, caption=None), {"caption": 1}),
    "an empty caption": Scenario(lambda root: edit_json(root, 3, caption=" "), {"caption": 1}),
    "an odd rate": Scenario(lambda root: edit_json(root, 1, fps=1000) or reindex(root), {"odd rate": 1}),
    "another size in the json": Scenario(lambda root: edit_json(root, 3, bucket="8x8x1"), {"bucket": 1}),
    "the scale of another VAE": Scenario(
        lambda root: edit_description(root, scale={"temporal": 8, "spatial": 32}),
        {"bucket": SAMPLES, "description": 1},
        mendable=False,
    ),
    "a null embedding of another width": Scenario(
        lambda root: edit_description(root, text_width=8),
        {"model": SAMPLES, "description": 1},
        ALL,
        mendable=False,
    ),
    "a garbled null embedding": Scenario(
        lambda root: edit_description(root, null_prompt_embeds=base64.b64encode(b"nothing").decode()),
        {"description": 1},
        mendable=False,
    ),
    "no null embedding": Scenario(lambda root: edit_description(root, null_prompt_embeds=None), {"null": 1}),
    "no fingerprint": Scenario(
        lambda root: edit_description(root, vae={"source": "a", "fingerprint": ""}), {"fingerprint": 1}
    ),
}


def renamed(root: Path) -> list[tuple[str, bytes]]:
    """The first sample under another key and of another clip."""
    found = members(shard_of(root, 0))[:2]
    return [
        (f"copy.{name.rpartition('.')[2]}", body.replace(b"clips/00.mp4", b"clips/zz.mp4"))
        for name, body in found
    ]
