"""Names of LTX-Video's modules in diffusers, and in the files Lightricks publishes, whose names ComfyUI's model has."""

from __future__ import annotations

_ORIGINAL = {"proj_in": "patchify_proj", "time_embed": "adaln_single", "norm_q": "q_norm", "norm_k": "k_norm"}
_DIFFUSERS = {theirs: ours for ours, theirs in _ORIGINAL.items()}


def original_name(name: str) -> str:
    """A module's or parameter's name in diffusers' model as Lightricks and ComfyUI call it."""
    return ".".join(_ORIGINAL.get(part, part) for part in name.split("."))


def diffusers_name(name: str) -> str:
    """The opposite of `original_name`; a name of diffusers' model stays as it is."""
    return ".".join(_DIFFUSERS.get(part, part) for part in name.split("."))
