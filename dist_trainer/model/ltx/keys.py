"""Names under which LTX-Video weights are exported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import save
from torch import Tensor

from dist_trainer.model.ltx.names import original_name
from shards.atomic import replacing

PREFIX = "transformer."
COMFYUI_PREFIX = "diffusion_model."
SINGLE_FILE_PREFIX = "model.diffusion_model."


def comfyui_lora_keys(tensors: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """Adapter tensors (`dist_trainer.model.lora.adapter_state`) under the keys of ComfyUI's LoRA files.

    ComfyUI adds `strength * alpha / rank * B @ A` to a weight, and takes alpha from a tensor of each module's own;
    where there is none, it takes the rank.
    """
    keys = {COMFYUI_PREFIX + original_name(name): tensor for name, tensor in tensors.items()}
    modules = [key.removesuffix(".lora_A.weight") for key in keys if key.endswith(".lora_A.weight")]
    return keys | {f"{module}.alpha": torch.tensor(float(alpha)) for module in modules}


def lora_keys(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapter tensors (`dist_trainer.model.lora.adapter_state`) under the keys of LTXPipeline's LoRA files."""
    return {PREFIX + name: tensor for name, tensor in tensors.items()}


def lora_metadata(config: Mapping[str, Any]) -> dict[str, str]:
    """The header entry from which diffusers restores alpha, rank and target modules.

    `config`: the peft configuration as plain JSON values (`dist_trainer.model.lora.adapter_config`).
    The same as `LTXPipeline.save_lora_weights(transformer_lora_adapter_metadata=config)` writes.
    """
    prefixed = {PREFIX + key: value for key, value in config.items()}
    return {LORA_ADAPTER_METADATA_KEY: json.dumps(prefixed, indent=2, sort_keys=True)}


def lora_file(
    path: Path,
    tensors: Mapping[str, Tensor],
    config: Mapping[str, Any],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write an adapter for `LTXPipeline.load_lora_weights`; the file is complete or not there at all.

    `tensors`: whole tensors from `adapter_state`. `config`: from `adapter_config`. `metadata`: further header
    entries.
    """
    header = {**(metadata or {}), "format": "pt", **lora_metadata(config)}
    _write(path, lora_keys(tensors), header)


def comfyui_lora_file(
    path: Path, tensors: Mapping[str, Tensor], alpha: float, metadata: Mapping[str, str] | None = None
) -> None:
    """Write an adapter for ComfyUI's LoRA loaders; arguments and promise as `lora_file`."""
    _write(path, comfyui_lora_keys(tensors, alpha), {**(metadata or {}), "format": "pt"})


def _write(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as file:
        file.write(save(whole, metadata=dict(header)))
