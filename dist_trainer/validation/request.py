"""The sample videos that a config asks for, checked against what VAE, transformer and dataset allow.

Imports without torch: a login node asks before a job is queued.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dist_trainer.config import RunConfig
from dist_trainer.validation.due import videos_wanted
from dist_trainer.validation.scheduler import read_scheduler
from dist_trainer.validation.videos import Video, videos
from shards.dataset.manifest import Manifest
from shards.dataset.opened import Dataset
from shards.errors import InputError
from shards.geometry import Grid, Patch, Scale
from shards.prepare.media.clip_error import ClipError
from shards.prepare.media.picture import read_picture
from shards.prepare.media.video import probe

PARTS = ("text_encoder", "tokenizer", "vae", "scheduler")  # of a model, that sample videos take


@dataclass(frozen=True)
class Request:
    """Sizes in pixels and, as `grid`, in latents; `reference` is the references' size in latents, None without them.

    `size` and `reference_size` are frames, height and width in pixels.
    """

    videos: tuple[Video, ...]
    grid: Grid
    size: tuple[int, int, int]
    reference: Grid | None
    reference_size: tuple[int, int, int] | None


class _Shrink(NamedTuple):
    """How many times smaller references are than their targets, in latents: frames after the first (0: the reference
    is a picture), height, width.
    """

    frames: int = 1
    height: int = 1
    width: int = 1


def request(config: RunConfig, dataset: Dataset, patch: Patch) -> Request | None:
    """The sample videos to make; None where none are asked for.

    Raises InputError, naming the nearest sizes that would do, for a size that VAE, patch or references do not fit.
    """
    if not videos_wanted(config):
        return None
    settings, scale = config.validation, dataset.info.scale
    width, height, frames = settings.video_dims
    shrink = _shrink(dataset.manifest) if config.conditioning.mode == "reference_video" else None
    _check_size(config, scale, patch, shrink)
    grid = scale.grid(frames, height, width)
    reference = None
    if shrink:
        smaller = (grid.frames - 1) // shrink.frames + 1 if shrink.frames else 1
        reference = Grid(smaller, grid.height // shrink.height, grid.width // shrink.width)
    return Request(
        videos(settings.prompts, settings.videos_per_prompt, frames),
        grid,
        (frames, height, width),
        reference,
        scale.pixels(reference) if reference else None,
    )


def check(config: RunConfig, dataset: Dataset, patch: Patch) -> None:
    """Raise InputError where the sample videos cannot be made: their size, a file, a part of a model on this host."""
    if wanted := request(config, dataset, patch):
        check_files(config, wanted.reference_size[0] if wanted.reference_size else 1)


def check_files(config: RunConfig, reference_frames: int = 1) -> None:
    """Raise InputError for a file that cannot be used, and a model on this host that lacks a part.

    It needs no dataset, which says how many frames of a reference a video takes.
    """
    if videos_wanted(config):
        _check_model(config)
        for problem in _wrong_files(config, reference_frames):
            raise InputError(problem)


def _check_size(config: RunConfig, scale: Scale, patch: Patch, shrink: _Shrink | None) -> None:
    settings = config.validation
    width, height, frames = settings.video_dims
    times, rows, columns = shrink or _Shrink()
    side = scale.spatial * patch.spatial
    # Of whole patches, and such that the references' latents are whole patches too.
    period = scale.temporal * max(1, times)
    fits = (
        _nearest(width, side * columns),
        _nearest(height, side * rows),
        _nearest(frames - 1, period, least=0) + 1,
    )
    if fits != (width, height, frames):
        smaller = " and its references" if shrink else ""
        raise InputError(
            f"validation.video_dims: [{width}, {height}, {frames}] does not fit the model{smaller}: width must "
            f"be a multiple of {side * columns}, height of {side * rows}, frames of {period} plus 1; the nearest is "
            f"[{', '.join(map(str, fits))}]"
        )
    latent_frames = (frames - 1) // scale.temporal + 1
    if latent_frames % patch.temporal:
        raise InputError(
            f"validation.video_dims: {frames} frames are {latent_frames} latent ones, no multiple of the transformer's "
            f"patch {patch.temporal}"
        )
    if settings.images is not None and latent_frames == 1:
        raise InputError(
            f"validation.images: a first frame leaves nothing to make of a video of {frames} frame; the shortest "
            f"validation.video_dims has {scale.temporal + 1} frames"
        )


def _nearest(size: int, step: int, least: int | None = None) -> int:
    return max(step if least is None else least, round(size / step) * step)


def _shrink(manifest: Manifest) -> _Shrink:
    """What most of a dataset's samples have: how many times smaller their first references are."""
    target = manifest.grid.astype(np.int64)
    found = manifest.references[:, 0].astype(np.int64)
    sides = target[:, 1:] // found[:, 1:]
    times = np.where(found[:, 0] > 1, (target[:, 0] - 1) // np.maximum(found[:, 0] - 1, 1), 0)
    # A sample of one frame says nothing of the references' rate.
    clips = target[:, 0] > 1
    chosen = clips if clips.any() else np.ones(len(target), bool)
    if not clips.any():
        times = np.ones_like(times)
    kinds, counts = np.unique(np.column_stack([times, sides])[chosen], axis=0, return_counts=True)
    return _Shrink(*kinds[counts.argmax()].tolist())


def _check_model(config: RunConfig) -> None:
    """Raise InputError where a model on this file system lacks what makes videos of prompts, or has another one."""
    place = Path(config.model.model_source).expanduser()
    lacking = [name for name in PARTS if not (place / name).is_dir()] if place.exists() else []
    if lacking:
        raise InputError(
            f"validation.prompts: model.model_source {place} has no {lacking[0]}/, which sample videos need; give a "
            "model folder as diffusers writes it, or set validation.interval to null"
        )
    if place.exists():
        read_scheduler(place / "scheduler")


def _wrong_files(config: RunConfig, reference_frames: int) -> Iterator[str]:
    settings = config.validation
    for number, name in enumerate(settings.images or ()):
        try:
            read_picture(Path(name))
        except ClipError as error:
            yield f"validation.images.{number}: {error}"
    references = settings.reference_videos if config.conditioning.mode == "reference_video" else None
    for number, name in enumerate(references or ()):
        try:
            frames = probe(Path(name)).frames
        except ClipError as error:
            yield f"validation.reference_videos.{number}: {error}"
            continue
        if frames < reference_frames:
            yield (
                f"validation.reference_videos.{number}: {name}: {frames} frames, but a video of "
                f"{settings.video_dims[2]} frames needs {reference_frames}; give a longer file, or a shorter "
                "validation.video_dims"
            )
