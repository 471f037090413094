"""What the numbers of one sample give away, read from its bytes with integer arithmetic: no torch, no floats."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from shards.formats.header import ITEM_BYTES, Entry, reference_names

# The bits of the exponent, all set in NaN and infinities alone.
_EXPONENT = {"BF16": 0x7F80, "F16": 0x7C00, "F32": 0x7F800000, "F64": 0x7FF << 52}
_CHUNK = 1 << 18  # numbers looked at in one go: they stay in the processor's cache
_PROBE = 64

Bits = npt.NDArray[np.unsignedinteger]


def content_problems(payload: bytes, entries: Mapping[str, Entry]) -> Iterator[tuple[str, str]]:
    """Kind (of ``shards.doctor.finding.KINDS``) and detail of all that is wrong with a sample's tensors."""
    references = reference_names(entries)
    for name in ("latents", *references, "prompt_embeds"):
        bits = bits_of(payload, entries[name])
        if not all_finite(bits, entries[name].dtype):
            yield "nan", name
        elif is_constant(bits):
            yield "constant", name
    latents = bits_of(payload, entries["latents"])
    shape = entries["latents"].shape
    frames = latents.reshape(shape[0], shape[1], -1)
    if shape[1] > 1 and not is_constant(latents):
        if _all_equal(frames, frames[:, :1]):
            yield "still", f"{shape[1]} latent frames"
        elif blank := [frame for frame in range(shape[1]) if is_constant(frames[:, frame])]:
            yield "blank", f"latent frame {blank[0]} of {shape[1]}"
    for name in references:
        entry = entries[name]
        same = entry.shape == shape and entry.dtype == entries["latents"].dtype
        if same and _all_equal(bits_of(payload, entry), latents):
            yield "reference copy", name


def bits_of(payload: bytes, entry: Entry) -> Bits:
    """A tensor's numbers as unsigned integers of their size, one-dimensional."""
    size = ITEM_BYTES[entry.dtype]
    return np.frombuffer(payload, f"<u{size}", (entry.end - entry.begin) // size, entry.begin)


def all_finite(bits: Bits, dtype: str) -> bool:
    """Whether no number is NaN or infinite; ``dtype`` as safetensors names it."""
    mask = bits.dtype.type(_EXPONENT[dtype])
    chunks = (bits[start : start + _CHUNK] for start in range(0, len(bits), _CHUNK))
    return not any(((chunk & mask) == mask).any() for chunk in chunks)


def is_constant(bits: Bits) -> bool:
    """Whether there are several numbers and all are the same."""
    return bits.size > 1 and _all_equal(bits, bits.reshape(-1)[:1])


def _all_equal(values: Bits, others: Bits) -> bool:
    """Whether arrays that broadcast are equal; the first few tell it of nearly all that are not."""
    probe = values[..., :_PROBE], others[..., :_PROBE]
    return bool((probe[0] == probe[1]).all()) and bool((values == others).all())
