"""Files of ``torch.save``, read without running anything that is in them: tensors and plain values alone."""

from __future__ import annotations

import math
import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
_ZIP = b"PK\x03\x04"  # by which torch tells its archives
_SHOWN = 200  # characters of names in a message
_NUMPY = ("i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8")


class FileError(ValueError):
    """A file that cannot be used; the message says why in a few words, without the file's name."""


def load(path: Path) -> dict[str, Any]:
    """The table that a file holds, tensors on the CPU. Call it inside ``plain_numbers()``. Raises FileError.

    It takes no more memory than the file has bytes, whatever the file says.
    """
    try:
        _check_size(path)
        stored = torch.load(path, map_location="cpu", weights_only=True)
    except FileError:
        raise
    except pickle.UnpicklingError as error:
        # torch's own text advises to load the file unsafely.
        asked = re.search(r"GLOBAL ([\w.]+)", str(error))
        reason = "torch.load(weights_only=True) refuses it: damaged, or not just tensors and plain values"
        raise FileError(f"it asks for {asked[1]}, and no code is run for it" if asked else reason) from error
    except Exception as error:  # what damaged bytes raise is not limited to a few kinds
        first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
        raise FileError(f"not a readable .pt file ({first})") from error
    if not isinstance(stored, dict):
        raise FileError(f"holds a {type(stored).__name__}, not a table of tensors")
    return stored


def _check_size(path: Path) -> None:
    """Raise FileError for an archive that unpacks to more bytes than it has: torch.save compresses nothing."""
    with path.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            return
        members = zipfile.ZipFile(file).infolist()
        if any(member.compress_type != zipfile.ZIP_STORED for member in members):
            raise FileError("it is compressed, which torch.save never does; save it again with torch.save")
        if sum(member.file_size for member in members) > path.stat().st_size:
            raise FileError("its parts claim more bytes than the file has")


def tensor(stored: dict[str, Any], name: str) -> Tensor:
    """A tensor of finite floating-point numbers, at least one. Raises FileError when it is none, or not there."""
    value = stored.get(name)
    if not isinstance(value, Tensor):
        there = ", ".join(key for key in stored if isinstance(key, str))
        raise FileError(f"no tensor {name!r} in it (there are: {there[:_SHOWN] or 'none'})")
    value = plain(value, name)
    if value.dtype not in _DTYPES:
        raise FileError(f"{name} are {value.dtype}; floating-point numbers are read")
    if not value.isfinite().all():
        raise FileError(f"{name} hold numbers that are not finite")
    return value


def plain(value: Tensor, name: str) -> Tensor:
    """A tensor whose numbers are all there: dense, on the CPU, each with bytes of its own. Raises FileError."""
    if value.is_nested or value.layout != torch.strided or value.device.type != "cpu" or value.is_neg():
        raise FileError(f"{name} is not a plain tensor ({value.layout}, {value.device})")
    if not value.numel():
        raise FileError(f"{name} {tuple(value.shape)} holds no number")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise FileError(f"{name} {tuple(value.shape)} has more numbers than the file holds")
    return value


def number(stored: dict[str, Any], name: str) -> float | int | None:
    """A finite number, as such or as a tensor of one element; None where there is none. Raises FileError."""
    value = stored.get(name)
    if isinstance(value, Tensor) and plain(value, name).numel() == 1:
        value = value.item()
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        # Not the value itself: lists in lists may be far longer in print than in the file.
        raise FileError(f"{name} is of type {type(value).__name__}, not a number")
    try:
        finite = math.isfinite(value)
    except OverflowError:  # of a whole number of hundreds of digits
        finite = False
    if not finite:
        raise FileError(f"{name} is not a finite number")
    return value


@contextmanager
def plain_numbers() -> Iterator[None]:
    """Let ``torch.load(weights_only=True)`` read a NumPy number, as ``height // 32`` of an array's shape gives.

    It is read by the function below instead of NumPy's own: still nothing of the file's choosing is run. Holds for
    all threads of the process.
    """
    known = [(_numpy_number, f"{module}.multiarray.scalar") for module in ("numpy.core", "numpy._core")]
    with torch.serialization.safe_globals([*known, (_NumpyDtype, "numpy.dtype")]):
        yield


class _NumpyDtype:
    """Stands in for numpy.dtype: its name, and what else a pickle says of it is dropped."""

    def __init__(self, name: str, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        pass


def _numpy_number(dtype: _NumpyDtype, data: bytes | str) -> float | int:
    if dtype.name not in _NUMPY:
        raise pickle.UnpicklingError(f"a NumPy value of type {dtype.name}")
    raw = data.encode("latin1") if isinstance(data, str) else data
    return np.frombuffer(raw, f"<{dtype.name}")[0].item()
