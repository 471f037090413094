"""Samples of a dataset back to videos and pictures, to look at what training sees."""

from __future__ import annotations

import difflib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from shards.atomic import place
from shards.dataset.opened import Dataset, open_dataset
from shards.dataset.sample_json import read_json
from shards.errors import DamagedSample, InputError
from shards.hashing import mix
from shards.prepare.encode.encoders import choose_device, choose_dtype
from shards.prepare.encode.models import fingerprint, load_vae
from shards.prepare.media.video import write_clip
from shards.prepare.tables.rows import read_rows, write_rows
from shards.reader import Reader
from shards.storage import Root

if TYPE_CHECKING:
    from diffusers import AutoencoderKLLTXVideo
    from torch import Tensor

    from shards.formats.sample import Sample

INDEX_NAME = "index.jsonl"
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


@dataclass(frozen=True)
class DecodeReport:
    """What `decode` wrote: files below its folder, and samples that could not be read with the reason."""

    out: Path
    files: tuple[str, ...]
    failures: tuple[tuple[str, str], ...]
    remark: str | None


def decode(
    root: Root,
    model: str | Path,
    out: Path,
    options: DecodeOptions = DecodeOptions(),
    on_sample: Callable[[int, int], None] = lambda done, total: None,
) -> DecodeReport:
    """Decode samples of the dataset at `root` (folder or URL) with the VAE of `model` into the folder `out`.

    A sample becomes `out/KEY.mp4`, or .png when it is one frame, its references to the left of it, as high as it
    is. `out/index.jsonl` has a row for each with its caption. A damaged sample is left out and reported. Raises
    InputError for keys that are not there, and a VAE other than that of the dataset unless `force`.
    """
    _check(options)
    dataset = open_dataset(root)
    rows = choose(dataset, options)
    device = choose_device(options.device, 0)
    vae = load_vae(model, choose_dtype(options.dtype, device))
    remark = check_vae(dataset, str(model), vae, options.force)
    vae.to(device)
    if options.vae_tiling:
        vae.enable_tiling()
    out.mkdir(parents=True, exist_ok=True)
    entries, failures = [], []
    with Reader(dataset) as reader, tempfile.TemporaryDirectory(prefix=".decode-", dir=out) as temporary:
        for count, row in enumerate(rows, start=1):
            sample = reader.read_each([row])[0]
            if isinstance(sample, DamagedSample):
                failures.append((str(dataset.manifest.keys[row]), str(sample)))
            else:
                frames = side_by_side([_frames(vae, latents, sample, options) for latents in _all(sample)])
                name = _file_name(out, sample.key, len(frames))
                file = Path(temporary) / f"clip{PurePosixPath(name).suffix}"
                write_clip(file, frames, sample.fps, options.crf)
                place(file, out / name)
                entries.append(_entry(name, sample, frames, read_json(dataset, [row])[0]))
            on_sample(count, len(rows))
    _write_index(out / INDEX_NAME, entries)
    return DecodeReport(out, tuple(entry["media_path"] for entry in entries), tuple(failures), remark)


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


def check_vae(dataset: Dataset, model: str, vae: AutoencoderKLLTXVideo, force: bool) -> str | None:
    """Raise `InputError` where the samples were encoded with another VAE; a remark where that is not known."""
    expected, found = dataset.info.vae, fingerprint(vae)
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


@torch.inference_mode()
def decode_latents(
    vae: AutoencoderKLLTXVideo,
    latents: Tensor,
    generator: torch.Generator,
    timestep: float = 0.0,
    noise_scale: float | None = None,
) -> np.ndarray:
    """Frames uint8 [F,H,W,3] of normalised latents [C,F,H,W], as `LTXPipeline` decodes.

    `latents * latents_std / scaling_factor + latents_mean` in float32, mixed with noise of `generator` (on the
    CPU) where the VAE takes a timestep. Raises InputError when the device's memory does not suffice.
    """
    z = latents.float().to(vae.device)[None]
    centre = vae.latents_mean.float().to(vae.device).view(1, -1, 1, 1, 1)
    spread = vae.latents_std.float().to(vae.device).view(1, -1, 1, 1, 1)
    z = z * spread / vae.config.scaling_factor + centre
    time = None
    if vae.config.timestep_conditioning:
        scale = timestep if noise_scale is None else noise_scale
        noise = torch.randn(z.shape, generator=generator).to(vae.device)
        z = (1 - scale) * z + scale * noise
        time = torch.tensor([timestep], device=vae.device, dtype=vae.dtype)
    try:
        video = vae.decode(z.to(vae.dtype), time, return_dict=False)[0][0]
    except torch.OutOfMemoryError as error:
        raise InputError(
            f"latents of {tuple(latents.shape[1:])} do not fit the memory of {vae.device} when decoded: "
            "use --vae-tiling, or --device cpu"
        ) from error
    pixels = (video.float() / 2 + 0.5).clamp(0, 1) * 255
    return pixels.round().to(torch.uint8).permute(1, 2, 3, 0).cpu().numpy()


def side_by_side(clips: Sequence[np.ndarray]) -> np.ndarray:
    """References and, last, the target, uint8 [F,H,W,3] each, in one picture: as high and as long as the target.

    Of a reference at a lower rate each frame stays as long as it has to.
    """
    frames, height = clips[-1].shape[:2]
    parts = []
    for clip in clips[:-1]:
        width = max(2, 2 * round(clip.shape[2] * height / clip.shape[1] / 2))
        if clip.shape[1:3] != (height, width):
            clip = np.stack([_resized(frame, width, height) for frame in clip])
        parts.append(clip[np.arange(frames) * len(clip) // frames])
    return np.concatenate([*parts, clips[-1]], axis=2)


def _resized(frame: np.ndarray, width: int, height: int) -> np.ndarray:
    return np.asarray(Image.fromarray(frame).resize((width, height), Image.Resampling.BICUBIC))


def _check(options: DecodeOptions) -> None:
    for name in ("first", "random"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name} {value} must be at least 1")
    for name in ("timestep", "noise_scale"):
        value = getattr(options, name)
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"--decode-{name.replace('_', '-')} {value:g} must be between 0 and 1")


def _near(key: str, keys: Sequence[str]) -> str:
    """Keys like `key`, as the end of a message."""
    found = [other for other in keys if key in other][:_NAMED]
    found = found or difflib.get_close_matches(key, keys[:_SEARCHED], _NAMED)
    return f"; there are {', '.join(map(repr, found))}" if found else f"; the first is {keys[0]!r}"


def _all(sample: Sample) -> list[Tensor]:
    return [*sample.references, sample.latents]


def _frames(
    vae: AutoencoderKLLTXVideo, latents: Tensor, sample: Sample, options: DecodeOptions
) -> np.ndarray:
    generator = torch.Generator().manual_seed(int(mix(options.seed, sample.id)))
    return decode_latents(vae, latents, generator, options.timestep, options.noise_scale)


def _file_name(out: Path, key: str, frames: int) -> str:
    # Keys of foreign datasets may be anything.
    if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts or "\0" in key:
        raise InputError(f"key {key!r} leads out of {out}: it cannot be a file's name")
    return f"{key}.png" if frames == 1 else f"{key}.mp4"


def _entry(name: str, sample: Sample, frames: np.ndarray, meta: dict[str, Any]) -> dict[str, Any]:
    return {
        "media_path": name,
        "caption": meta.get("caption", ""),
        "key": sample.key,
        "source": meta.get("source", ""),
        "references": len(sample.references),
        "frames": len(frames),
        "width": frames.shape[2],
        "height": frames.shape[1],
        "fps": sample.fps,
    }


def _write_index(path: Path, entries: Sequence[dict[str, Any]]) -> None:
    """Add rows to the index; those of files that were written again are replaced."""
    rows = {row["media_path"]: row for row in (read_rows(path) if path.exists() else [])}
    rows |= {entry["media_path"]: entry for entry in entries}
    write_rows(path, list(rows.values()))
