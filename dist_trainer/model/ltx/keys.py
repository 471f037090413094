"""Names under which LTX-Video weights are exported."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors.torch import save
from torch import Tensor

from shards.atomic import replacing

PREFIX = "transformer."


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
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in lora_keys(tensors).items()}
    with replacing(path) as file:
        file.write(save(whole, metadata=header))
