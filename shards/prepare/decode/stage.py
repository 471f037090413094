"""Samples of a dataset back to videos and pictures, to look at what training sees."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from shards.atomic import place
from shards.dataset.opened import Dataset, open_dataset
from shards.dataset.sample_json import read_json
from shards.errors import DamagedSample, InputError
from shards.formats.text import key_fault
from shards.hashing import mix
from shards.prepare.decode.options import DEFAULTS, DecodeOptions, check, choose
from shards.prepare.decode.pictures import decode_latents, side_by_side
from shards.prepare.encode.encoders import choose_device, choose_dtype
from shards.prepare.encode.models import fingerprint, load_vae
from shards.prepare.media.video import write_clip
from shards.prepare.tables.rows import read_rows, write_rows
from shards.prepare.work.job import refusals
from shards.reader import Reader
from shards.storage import Folder, Root

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTXVideo
    from torch import Tensor

    from shards.formats.sample import Sample

INDEX_NAME = "index.jsonl"
_SCRATCH = ".decode-"
_STALE_S = 3600.0  # a clip is written in less


@dataclass(frozen=True)
class DecodeReport:
    """Files below `out` of the samples asked for, how many of them were there, samples that could not be read."""

    out: Path
    files: tuple[str, ...]
    existed: int
    failures: tuple[tuple[str, str], ...]  # key, reason
    remark: str | None


def decode(
    root: Root,
    model: str | Path,
    out: Path,
    options: DecodeOptions = DEFAULTS,
    on_sample: Callable[[int, int], None] = lambda done, total: None,
) -> DecodeReport:
    """Decode samples of the dataset at `root` (folder or URL) with the VAE of `model` into the folder `out`.

    A sample becomes `out/KEY.mp4`, or .png when it is one frame, its references to the left of it, as high as it
    is. `out/index.jsonl` gets a row for each as it is done, with its caption; one that is there, of the same bytes
    by the same VAE and options, is not decoded again. A damaged sample is left out and reported.

    Raises InputError for keys that are not there, a VAE other than that of the dataset unless `force`, and a full
    or forbidden disk.
    """
    check(options)
    dataset = open_dataset(root)
    rows = choose(dataset, options)
    device = choose_device(options.device, 0)
    vae = load_vae(model, choose_dtype(options.dtype, device))
    found = fingerprint(vae)
    remark = check_vae(dataset, str(model), vae, found, options.force)
    vae.to(device)
    if options.vae_tiling:
        vae.enable_tiling()
    with refusals(Folder(out)):
        out.mkdir(parents=True, exist_ok=True)
        _sweep(out)
        known = {row.get("key"): row for row in _read_index(out)}
    files, failures, existed = [], [], 0
    with Reader(dataset) as reader:
        for count, row in enumerate(rows, start=1):
            key, mark = str(dataset.manifest.keys[row]), _mark(dataset, row, vae, found, options)
            if _is_there(out, known.get(key), mark):
                files.append(known[key]["media_path"])
                existed += 1
            elif isinstance(sample := reader.read_each([row])[0], DamagedSample):
                failures.append((key, str(sample)))
            else:
                frames = side_by_side([_frames(vae, latents, sample, options) for latents in _all(sample)])
                entry = _entry(out, sample, frames, read_json(dataset, [row])[0]) | {"decoded": mark}
                with refusals(Folder(out)):
                    _keep(out, frames, options.crf, entry)
                files.append(entry["media_path"])
            on_sample(count, len(rows))
    return DecodeReport(out, tuple(files), existed, tuple(failures), remark)


def check_vae(
    dataset: Dataset, model: str, vae: AutoencoderKLLTXVideo, found: str, force: bool
) -> str | None:
    """Raise `InputError` where the samples were encoded with another VAE; a remark where that is not known.

    `found` is the fingerprint of `vae`.
    """
    expected = dataset.info.vae
    if vae.config.latent_channels != dataset.info.channels:
        raise InputError(
            f"{dataset.root} has latents of {dataset.info.channels} channels, the VAE of {model} takes "
            f"{vae.config.latent_channels}"
        )
    if not expected.fingerprint:
        return f"{dataset.root} does not say which VAE it was encoded with; decoded with that of {model}, {found}"
    if found == expected.fingerprint:
        return None
    difference = (
        f"{dataset.root} was encoded with the VAE {expected.fingerprint} of {expected.source}, "
        f"that of {model} is {found}"
    )
    if not force:
        raise InputError(f"{difference}: give that model, or --force to decode all the same")
    return difference


def _all(sample: Sample) -> list[Tensor]:
    return [*sample.references, sample.latents]


def _frames(
    vae: AutoencoderKLLTXVideo, latents: Tensor, sample: Sample, options: DecodeOptions
) -> np.ndarray:
    generator = torch.Generator().manual_seed(int(mix(options.seed, sample.id)))
    try:
        return decode_latents(vae, latents, generator, options.timestep, options.noise_scale)
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"latents of {tuple(latents.shape[1:])} do not fit the memory of {vae.device} when decoded: "
            "use --vae-tiling, or --device cpu"
        ) from error


def _mark(dataset: Dataset, row: int, vae: AutoencoderKLLTXVideo, found: str, options: DecodeOptions) -> str:
    """16 hex digits of all that a sample's file depends on."""
    sample = int(dataset.manifest.checksum[row]), float(dataset.manifest.fps[row])
    scale = options.timestep if options.noise_scale is None else options.noise_scale
    how = options.seed, options.timestep, scale, options.vae_tiling, options.crf
    described = repr((sample, found, str(vae.dtype), vae.device.type, how))
    return hashlib.sha256(described.encode()).hexdigest()[:16]


def _is_there(out: Path, entry: dict[str, Any] | None, mark: str) -> bool:
    return entry is not None and entry.get("decoded") == mark and (out / entry["media_path"]).is_file()


def _keep(out: Path, frames: np.ndarray, crf: int, entry: dict[str, Any]) -> None:
    """Put a sample's file in place, and then its row into the index, instead of one of the same file."""
    name = entry["media_path"]
    with tempfile.TemporaryDirectory(prefix=_SCRATCH, dir=out) as scratch:
        file = Path(scratch) / f"clip{PurePosixPath(name).suffix}"
        write_clip(file, frames, entry["fps"], crf)
        place(file, out / name)
    rows = {row["media_path"]: row for row in _read_index(out)} | {name: entry}
    write_rows(out / INDEX_NAME, list(rows.values()))


def _sweep(out: Path) -> None:
    """Take away what killed processes left."""
    latest = Folder(out).clock() - _STALE_S
    for left in out.glob(f"{_SCRATCH}*"):
        with suppress(OSError):
            if left.stat().st_mtime < latest:
                shutil.rmtree(left)


def _file_name(out: Path, key: str, frames: int) -> str:
    if fault := key_fault(key):
        raise InputError(f"key {key!r} {fault}: it cannot be a file's name in {out}")
    return f"{key}.png" if frames == 1 else f"{key}.mp4"


def _entry(out: Path, sample: Sample, frames: np.ndarray, meta: dict[str, Any]) -> dict[str, Any]:
    """A sample's row in the index."""
    return {
        "media_path": _file_name(out, sample.key, len(frames)),
        "caption": meta.get("caption", ""),
        "key": sample.key,
        "source": meta.get("source", ""),
        "references": len(sample.references),
        "frames": len(frames),
        "width": frames.shape[2],
        "height": frames.shape[1],
        "fps": sample.fps,
    }


def _read_index(out: Path) -> list[dict[str, Any]]:
    path = out / INDEX_NAME
    return read_rows(path) if path.exists() else []
