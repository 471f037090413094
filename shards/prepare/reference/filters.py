"""What turns a clip into its reference: built-in filters, and a function out of a user's file."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from shards.errors import InputError

Frames = Callable[[np.ndarray], np.ndarray]  # uint8 [F,H,W,3], RGB, to the same; H and W may change
_MOST_TIMES, _LEAST_PIXELS = 64, 8  # how many times smaller, and what is left of a side
KINDS = ("canny", "blur", "grayscale", "downscale")


class Filter(NamedTuple):
    """A function of frames, and what to call its results: `label` differs wherever they would.

    `whole` means that it is given all frames of a clip at once, and not some after the other.
    """

    label: str
    apply: Frames
    whole: bool


class FilterError(Exception):
    """A filter cannot be used on a clip; `reason` says why in a line, and where in a user's function."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class FilterOptions:
    """Settings of the built-in filters; None is the usual one, and refused for another filter."""

    low: int | None = None  # canny: 100, of the gradient that makes an edge next to one
    high: int | None = None  # canny: 200, of the gradient that makes an edge
    sigma: float | None = None  # blur: 4 pixels
    factor: int | None = None  # downscale: 2
    keep_size: bool | None = None  # downscale: blown up again to the clip's size


def builtin(kind: str, options: FilterOptions = FilterOptions()) -> Filter:
    """The filter `kind`. Raises `InputError` for an unknown one, and settings it does not have or allow.

    canny: white edges on black. blur: Gaussian. grayscale: brightness in all three colours. downscale: sides
    divided by `factor`, each pixel the mean of those it stands for; blown up again bicubically where
    `keep_size`.
    """
    usual: dict[str, dict[str, Any]] = {
        "canny": {"low": 100, "high": 200},
        "blur": {"sigma": 4.0},
        "grayscale": {},
        "downscale": {"factor": 2, "keep_size": False},
    }
    if kind not in usual:
        raise InputError(f"--kind {kind!r} is not known: use {', '.join(KINDS)}, or --compute FILE:FUNCTION")
    given = {name: value for name, value in vars(options).items() if value is not None}
    foreign = next((name for name in given if name not in usual[kind]), None)
    if foreign:
        raise InputError(f"--{foreign.replace('_', '-')} is not a setting of --kind {kind}")
    values = usual[kind] | given
    _check(values)
    # Each file is made once, so another setting has to mean another name.
    marks = [f"{value:g}" if value is not True else "kept" for value in values.values() if value is not False]
    label = kind if values == usual[kind] else "-".join([kind, *marks])
    return Filter(label, partial(_FUNCTIONS[kind], **values), False)


def plugin(spec: str) -> Filter:
    """A function out of a Python file, written "my_file.py:compute_condition"; it may import what lies beside the file.

    It gets all frames of a clip, uint8 [F,H,W,3], RGB, and gives as many, of any size. The label holds a
    hash of the file: a changed function makes other files. Raises `InputError` for what cannot be loaded;
    the filter raises it for a result that is not such frames, and `FilterError` where the function raises.
    """
    file, _, name = spec.rpartition(":")
    path = Path(file).resolve()
    if not file.endswith(".py") or not name.isidentifier():
        raise InputError(
            f"--compute {spec!r}: give a Python file and a function in it, as my_file.py:compute_condition"
        )
    if not path.is_file():
        raise InputError(f"--compute {spec!r}: no such file")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    _load(spec, path, name, digest)
    # By name, so that the filter can be handed to another process.
    return Filter(f"{name}-{digest}", partial(_checked, spec, path, name, digest), True)


def canny(frames: np.ndarray, low: int = 100, high: int = 200) -> np.ndarray:
    """Edges by cv2.Canny with these two thresholds."""
    return _each(frames, lambda frame: cv2.Canny(_gray(frame), low, high))


def blur(frames: np.ndarray, sigma: float = 4.0) -> np.ndarray:
    """Gaussian blur; `sigma` in pixels."""
    return _each(frames, lambda frame: cv2.GaussianBlur(frame, (0, 0), sigma))


def grayscale(frames: np.ndarray) -> np.ndarray:
    """Brightness (BT.601)."""
    return _each(frames, _gray)


def downscale(frames: np.ndarray, factor: int = 2, keep_size: bool = False) -> np.ndarray:
    """Frames `factor` times smaller, or as large again and without what was lost.

    Raises FilterError for frames of which next to nothing would be left.
    """
    height, width = frames.shape[1:3]
    if min(height, width) < _LEAST_PIXELS * factor:
        raise FilterError(f"{width}x{height} pixels are too few for --factor {factor}")
    small = round(width / factor), round(height / factor)

    def scaled(frame: np.ndarray) -> np.ndarray:
        frame = cv2.resize(frame, small, interpolation=cv2.INTER_AREA)
        return cv2.resize(frame, (width, height), interpolation=cv2.INTER_CUBIC) if keep_size else frame

    return _each(frames, scaled)


_FUNCTIONS: dict[str, Callable[..., np.ndarray]] = {
    "canny": canny,
    "blur": blur,
    "grayscale": grayscale,
    "downscale": downscale,
}


def _gray(frame: np.ndarray) -> np.ndarray:
    return cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)


def _each(frames: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """`function` of each frame; a result [h,w] goes into all three colours."""
    results = (function(frame) for frame in frames)
    return np.stack([np.repeat(r[..., None], 3, axis=-1) if r.ndim == 2 else r for r in results])


def _check(values: dict[str, Any]) -> None:
    low, high = values.get("low", 0), values.get("high", 0)
    if not 0 <= low <= high:
        raise InputError(f"--low {low} and --high {high}: low is at least 0 and at most high")
    if not 0 < values.get("sigma", 1.0) <= 1000:
        raise InputError(f"--sigma {values['sigma']:g} must be above 0, and at most 1000 pixels")
    if not 2 <= values.get("factor", 2) <= _MOST_TIMES:
        raise InputError(f"--factor {values['factor']} must be at least 2 and at most {_MOST_TIMES}")


@cache
def _load(spec: str, path: Path, name: str, digest: str) -> Frames:
    # As for a script that is run: what lies beside it can be imported.
    folder = str(path.parent)
    if folder not in sys.path:
        sys.path.append(folder)
    module_spec = importlib.util.spec_from_file_location(f"{path.stem}_{digest}", path)
    assert module_spec is not None
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    sys.modules[module.__name__] = module  # data classes in it look it up
    try:
        module_spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise InputError(f"--compute {spec!r}: the file cannot be loaded: {_where(error, path)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise InputError(f"--compute {spec!r}: the file has no function {name!r}")
    return function


def _checked(spec: str, path: Path, name: str, digest: str, frames: np.ndarray) -> np.ndarray:
    shape = frames.shape
    function = _load(spec, path, name, digest)
    try:
        result = function(frames)
    except (Exception, SystemExit) as error:
        raise FilterError(f"--compute {spec!r}: {_where(error, path)}") from error
    if not isinstance(result, np.ndarray):
        raise InputError(f"--compute {spec!r}: it gave a {type(result).__name__}, expected a NumPy array")
    if result.dtype != np.uint8:
        raise InputError(f"--compute {spec!r}: it gave {result.dtype}, expected uint8 from 0 to 255")
    if result.ndim != 4 or result.shape[-1] != 3 or 0 in result.shape:
        raise InputError(
            f"--compute {spec!r}: it gave the shape {list(result.shape)}, expected [F,H,W,3]; "
            f"for this clip F is {shape[0]}"
        )
    if len(result) != shape[0]:
        raise InputError(f"--compute {spec!r}: it gave {len(result)} frames for {shape[0]}: give as many")
    return result


def _where(error: BaseException, path: Path) -> str:
    """What was raised, and the line of the user's file."""
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    message = str(error)
    if isinstance(error, SyntaxError) and error.filename == str(path):
        lines, message = [error.lineno], error.msg
    first = next(iter(message.splitlines()), "")
    text = f"{type(error).__name__}: {first}" if first else type(error).__name__
    return f"{text} ({path.name}, line {lines[-1]})" if lines else text
