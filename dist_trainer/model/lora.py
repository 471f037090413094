"""Low-rank adapters on a frozen transformer, by peft."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor, nn

from dist_trainer.model.targets import check_targets

_ADAPTER = "default"


def add_adapter(
    model: Any,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: Sequence[str],
    seed: int,
) -> list[str]:
    """Freeze a diffusers `model` and add adapters of `rank` to its linear layers whose names end in one of
    `target_modules`.

    The adapters start from `seed` alone, so every rank starts alike, and change nothing at first (lora_B is
    zero); torch's random state is left as it was. Call it outside `zero.Init`, which empties lora_B's zeros
    before they are set. Returns the names of the trainable parameters, in the model's order. Raises
    InputError on a name that fits no linear layer, with the nearest names that do.
    """
    check_targets(
        [name for name, module in model.named_modules() if isinstance(module, nn.Linear)], target_modules
    )
    model.requires_grad_(False)
    config = lora_config(rank, alpha, dropout, target_modules)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.add_adapter(config, adapter_name=_ADAPTER)
    return [name for name, parameter in model.named_parameters() if parameter.requires_grad]


def lora_config(rank: int, alpha: float, dropout: float, target_modules: Sequence[str]) -> LoraConfig:
    """peft's description of the adapters."""
    return LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides by the rank; fractions are fine
        lora_dropout=dropout,
        target_modules=list(target_modules),
        init_lora_weights=True,
    )


def adapter_state(gathered: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's tensors of a state dict, under the names diffusers uses inside the model.

    `gathered`: whole tensors by parameter name (`....to_q.lora_A.default.weight`), the base's are left out.
    Returns e.g. `....to_q.lora_A.weight`: [rank, in]; `....to_q.lora_B.weight`: [out, rank].
    """
    return {plain_name(name): tensor for name, tensor in gathered.items() if is_adapters(name)}


def is_adapters(name: str) -> bool:
    """Whether a parameter is the adapter's, told from its name."""
    return ".lora_A." in name or ".lora_B." in name


def plain_name(name: str) -> str:
    """The name of an adapter's parameter as diffusers has it in files: without the adapter's own name in it."""
    return name.replace(f".{_ADAPTER}.", ".")


def adapter_config(config: LoraConfig) -> dict[str, Any]:
    """An adapter's settings (rank, alpha, target modules...) as plain JSON values, in a stable order."""
    return {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in sorted(config.to_dict().items())
    }
