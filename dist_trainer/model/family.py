"""Model families: what the trainer asks of one, and which one a model folder belongs to."""

from __future__ import annotations

import json
from typing import Any

from dist_trainer.model import ltx
from shards.errors import InputError
from shards.source import transformer_config

# One entry per family: its module offers `shape`, `flops`, `install` (the packed forward), `blocks`, the names for
# export, and `VAE`, the class whose latents its transformer takes.
FAMILIES = {"LTXVideoTransformer3DModel": ltx}
WEIGHTS = "diffusion_pytorch_model.safetensors"
LORA_FILE = "pytorch_lora_weights.safetensors"


def vae_of(source: str) -> str:
    """Class of the VAE whose latents a model takes. Raises as ``read_config``."""
    vae: str = FAMILIES[read_config(source)["_class_name"]].VAE
    return vae


def read_config(source: str) -> dict[str, Any]:
    """The transformer's config.json. Raises InputError when it is absent or of an unknown model family."""
    path = transformer_config(source)
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"model.model_source: {path}: not a model's config: {error}") from error
    name = config.get("_class_name") if isinstance(config, dict) else None
    if name not in FAMILIES:
        raise InputError(
            f"model.model_source: {path}: _class_name {name!r} is not one of: {', '.join(FAMILIES)}"
        )
    return config
