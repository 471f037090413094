"""Integer hashing: the only source of randomness of the plan.

Everything is unsigned 64-bit arithmetic, so every host, NumPy version and instruction set gives the same
bits, which `numpy.random` and floating-point keys do not promise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

UInt64 = np.uint64 | npt.NDArray[np.uint64]
Integers = int | np.integer[Any] | npt.NDArray[np.integer[Any]]

_MASK = (1 << 64) - 1
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FACTOR_1 = np.uint64(0xBF58476D1CE4E5B9)
_FACTOR_2 = np.uint64(0x94D049BB133111EB)
_S30, _S27, _S31, _S11 = (np.uint64(n) for n in (30, 27, 31, 11))


def splitmix64(x: UInt64) -> npt.NDArray[np.uint64]:
    """One output of the SplitMix64 generator for each state in `x`, wrapping modulo 2**64.

    A bijection on 64 bits, so distinct inputs never collide.
    `x`: uint64, any shape; returns a new uint64 array of that shape (0-d for a scalar).
    Source: Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014.
    """
    z = np.array(x, dtype=np.uint64, ndmin=1)
    z += _GAMMA
    z ^= z >> _S30
    z *= _FACTOR_1
    z ^= z >> _S27
    z *= _FACTOR_2
    z ^= z >> _S31
    return z.reshape(np.shape(x))


def mix(*values: Integers) -> npt.NDArray[np.uint64]:
    """Hash an ordered tuple of integers: a chain of `splitmix64`, each value xor-ed into the hash so far.

    Arrays broadcast against each other; Python ints of any size or sign are taken modulo 2**64.
    Returns uint64 of the broadcast shape (0-d when all values are scalars; `int()` makes a Python int of it).
    A bijection of any one value while the others are fixed, so distinct ids never share a key.
    """
    if not values:
        raise TypeError("mix() needs at least one value")
    state = splitmix64(_word(values[0]))
    for value in values[1:]:
        state = splitmix64(np.bitwise_xor(state, _word(value)))
    return state


def sample_id(key: str) -> int:
    """The 64-bit identity of a sample: xxh3_64 of its key in UTF-8, in [0, 2**64)."""
    return xxhash.xxh3_64_intdigest(key.encode("utf-8"))


def unit(x: UInt64) -> npt.NDArray[np.float64]:
    """Map hashes to float64 in [0, 1) by their top 53 bits, exact on every host. Same shape as `x`."""
    words = np.asarray(x, dtype=np.uint64)
    return np.asarray((words >> _S11).astype(np.float64) * 2.0**-53)


def _word(value: Integers) -> UInt64:
    if isinstance(value, int):
        return np.uint64(value & _MASK)
    return np.asarray(value).astype(np.uint64, copy=False)
