"""Sizes: pixels, latent grids, tokens, and the buckets raw clips are brought to."""

from __future__ import annotations

import re
from typing import NamedTuple

from shards.errors import InputError


class Patch(NamedTuple):
    """Latent cells per token along time and along each side, from the transformer's config."""

    temporal: int = 1
    spatial: int = 1


UNIT_PATCH = Patch()


class Grid(NamedTuple):
    """Size of a latent after the VAE, in cells: F, H, W."""

    frames: int
    height: int
    width: int

    def tokens(self, patch: Patch = UNIT_PATCH) -> int:
        """Tokens of a latent of this size: F*H*W for 1x1 patches.

        Raises InputError where the patch does not divide the grid.
        """
        if self.frames % patch.temporal or self.height % patch.spatial or self.width % patch.spatial:
            raise InputError(f"latent grid {tuple(self)} is not divisible by the patch {tuple(patch)}")
        return (
            (self.frames // patch.temporal) * (self.height // patch.spatial) * (self.width // patch.spatial)
        )


class Scale(NamedTuple):
    """Compression of the VAE: pixels per latent cell along time and each side, from the VAE's config."""

    temporal: int
    spatial: int

    def grid(self, frames: int, height: int, width: int) -> Grid:
        """Latent grid of a clip given in pixels: F = (frames-1)/temporal + 1, H and W = side/spatial.

        Raises InputError unless frames % temporal == 1 and both sides are multiples of the spatial ratio.
        """
        if frames < 1 or frames % self.temporal != 1 % self.temporal:
            raise InputError(
                f"{frames} frames cannot be encoded: the VAE takes a multiple of {self.temporal} plus 1, "
                f"the nearest below is {self.frames_below(frames)}"
            )
        if height < 1 or width < 1 or height % self.spatial or width % self.spatial:
            raise InputError(
                f"{width}x{height} pixels cannot be encoded: both sides must be multiples of {self.spatial}"
            )
        return Grid((frames - 1) // self.temporal + 1, height // self.spatial, width // self.spatial)

    def pixels(self, grid: tuple[int, int, int]) -> tuple[int, int, int]:
        """Frames, height and width in pixels of a latent grid (the inverse of ``grid``)."""
        return (grid[0] - 1) * self.temporal + 1, grid[1] * self.spatial, grid[2] * self.spatial

    def frames_below(self, frames: int) -> int:
        """Largest encodable number of frames that is at most ``frames`` (at least 1)."""
        return max(1, (frames - 1) // self.temporal * self.temporal + 1)


class Bucket(NamedTuple):
    """A size raw clips are brought to, in pixels and frames; written WIDTHxHEIGHTxFRAMES."""

    width: int
    height: int
    frames: int

    def __str__(self) -> str:
        return f"{self.width}x{self.height}x{self.frames}"

    @classmethod
    def parse_list(cls, text: str) -> tuple[Bucket, ...]:
        """Read ``"768x448x89,512x512x1"`` (comma or semicolon between buckets); repeated buckets count once.

        Raises InputError naming the part that is not WIDTHxHEIGHTxFRAMES with positive numbers.
        """
        parts = [part.strip() for part in re.split("[,;]", text) if part.strip()]
        if not parts:
            raise InputError("no bucket given: write for example 768x448x89 (width x height x frames)")
        return tuple(dict.fromkeys(cls._parse(part) for part in parts))

    @classmethod
    def _parse(cls, text: str) -> Bucket:
        match = re.fullmatch(r"([0-9]+)x([0-9]+)x([0-9]+)", text.lower())
        bucket = cls(*map(int, match.groups())) if match else None
        if bucket is None or min(bucket) < 1:
            raise InputError(f"bucket {text!r} is not WIDTHxHEIGHTxFRAMES, for example 768x448x89")
        return bucket
