"""Whether a reference goes with its clip: at equal rate and length, or at a whole fraction of both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from shards.errors import InputError
from shards.geometry import Bucket, Scale
from shards.prepare.media.video import ClipError, ClipInfo, probe

# Rates that differ by less are equal: 23.976 and 24 are (0.1 %), 24 and 25 are not (4 %).
_RATE_TOLERANCE = 0.005


class Reference(NamedTuple):
    """A reference clip that fits: `step` frames of the target go by in one of its own; a picture has step 0.

    `frames` of it are encoded with each window of the target.
    """

    path: Path
    step: int
    frames: int

    def start(self, start: int) -> int:
        """Its frame at the same time as the target's frame `start`, a multiple of `step`."""
        return start // self.step if self.step else 0


def pair(target: ClipInfo, bucket: Bucket, path: Path, scale: Scale) -> Reference:
    """The reference at `path` for a clip that goes to `bucket`.

    Equal rates need equal lengths. At a rate `step` times lower it has to cover the same time, and a frame in
    `step` of the bucket's has to fit the VAE. A picture goes with anything: it stands for the first frame.

    Raises `ClipError` with the values that do not agree.
    """
    info = probe(path)
    if info.frames == 1:
        return Reference(path, 0, 1)
    step = round(target.fps / info.fps)
    if step < 1 or abs(target.fps / info.fps / step - 1) > _RATE_TOLERANCE:
        raise ClipError(
            path,
            f"{info.fps:.6g} frames per second, the clip has {target.fps:.6g}: "
            "neither equal nor a whole fraction of it",
        )
    if step == 1 and info.frames != target.frames:
        raise ClipError(path, f"{info.frames} frames, the clip has {target.frames}")
    covered = range(target.frames // step, (target.frames - 1) // step + 2)
    if info.frames not in covered:
        raise ClipError(
            path,
            f"{info.frames} frames at {info.fps:.6g} frames per second, the clip has {target.frames} at "
            f"{target.fps:.6g}: {covered[-1]} would cover the same time",
        )
    return Reference(path, step, _frames(bucket, path, step, scale))


def check_downscale(buckets: Sequence[Bucket], factor: int, scale: Scale) -> None:
    """Raise `InputError` naming the first bucket whose references, `factor` times smaller, do not fit the VAE."""
    if factor < 1:
        raise InputError(f"--reference-downscale {factor}: must be at least 1")
    for bucket in buckets:
        width, height = bucket.width / factor, bucket.height / factor
        if width % scale.spatial or height % scale.spatial:
            raise InputError(
                f"--buckets {bucket}: its references would be {width:g}x{height:g} pixels at --reference-downscale "
                f"{factor}, and the VAE takes multiples of {scale.spatial}"
            )


def _frames(bucket: Bucket, path: Path, step: int, scale: Scale) -> int:
    if (bucket.frames - 1) % (step * scale.temporal):
        raise ClipError(
            path,
            f"a frame for {step} of the clip's, and the VAE cannot encode 1 in {step} of the {bucket.frames} "
            f"frames of bucket {bucket}",
        )
    return (bucket.frames - 1) // step + 1
