"""Pictures as arrays of 8 bits a colour, without transparency."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from shards.prepare.media.clip_error import ClipError, reason_of

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"})
_BACKDROP = 255  # behind what is transparent: white


def read_picture(path: Path) -> np.ndarray:
    """A picture as it is meant to be seen: uint8 [H,W,3], RGB, upright.

    Of 16 bits a value the upper 8 are taken, so that the whole range stays the whole range. What is transparent
    lies on white. Raises `ClipError` for what is no picture, and for 32 bits a value, whose range nobody knows.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode in ("I", "F"):
                raise ClipError(path, "32 bits a value, of an unknown range: save it with 8 or 16 bits")
            turned = ImageOps.exif_transpose(picture)
            if turned.mode.startswith("I;16"):
                turned = Image.fromarray((np.asarray(turned) >> 8).astype(np.uint8))
            if turned.has_transparency_data:
                return opaque(np.asarray(turned.convert("RGBA")))
            return np.asarray(turned.convert("RGB"))
    except ClipError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ClipError(path, reason_of(error)) from error


def opaque(pixels: np.ndarray) -> np.ndarray:
    """Red, green, blue and opacity, uint8 [H,W,4], laid on white: uint8 [H,W,3]."""
    colours, opacity = pixels[..., :3].astype(np.uint16), pixels[..., 3:].astype(np.uint16)
    mixed = colours * opacity + _BACKDROP * (255 - opacity)
    return ((mixed + 127) // 255).astype(np.uint8)
