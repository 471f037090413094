"""How much of what the devices could compute a step has used (MFU), with attention counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from dist_trainer.config import RunConfig
from dist_trainer.model.family import FAMILIES
from dist_trainer.model.flops import Flops
from dist_trainer.world import World

# Dense bf16 products summed in float32, TFLOP/s, by what the device's name has in it; the first that fits counts.
# From the makers' data sheets, without sparsity.
_PEAKS = (
    ("B300", 2250.0),
    ("B200", 2250.0),
    ("GH200", 989.4),
    ("H200 NVL", 835.5),
    ("H200", 989.4),
    ("H100 PCIe", 756.0),
    ("H100 NVL", 835.5),
    ("H100", 989.4),
    ("H800 PCIe", 756.0),
    ("H800", 989.4),
    ("H20", 148.0),
    ("A100", 312.0),
    ("A800", 312.0),
    ("L40S", 362.0),
    ("L40", 181.0),
    ("L4", 121.0),
    ("RTX 6000 Ada", 364.2),
    ("RTX A6000", 154.8),
    ("A40", 149.7),
    ("A30", 165.0),
    ("A10G", 70.0),
    ("A10", 125.0),
    ("RTX 4090", 165.2),
    ("RTX 3090", 71.0),
    ("MI325X", 1307.4),
    ("MI300X", 1307.4),
    ("MI250X", 191.5),  # of one of its two dies, which is a device
)


@dataclass(frozen=True)
class Utilization:
    """What a sample's training needs, what gradient checkpointing adds to it, and FLOP/s of all devices together."""

    needed: Flops
    recomputed: Flops | None
    peak: float

    def figures(self, tokens: np.ndarray, text_tokens: np.ndarray, seconds: float) -> dict[str, float]:
        """`speed/mfu`, of a step of samples of `tokens` and `text_tokens` int64 [B]; in [0, 1] where the peak is right.

        Only work that training needs counts. `speed/hfu` counts what is computed twice too, where that is asked for.
        """
        needed = float(self.needed(tokens, text_tokens).sum())
        found = {"speed/mfu": needed / (seconds * self.peak)}
        if self.recomputed:
            again = float(self.recomputed(tokens, text_tokens).sum())
            found["speed/hfu"] = (needed + again) / (seconds * self.peak)
        return found


def utilization(
    config: RunConfig, transformer: Mapping[str, Any], shapes: Mapping[str, Sequence[int]], world: World
) -> Utilization | None:
    """How to tell the utilization of a run; None where the peak of its devices is not known.

    `transformer`: the model's config.json. `shapes`: of the trained parameters.
    """
    peak = _peak(config, world)
    if peak is None:
        return None
    flops = FAMILIES[transformer["_class_name"]].flops
    adapters = shapes if config.model.training_mode == "lora" else None
    again = None
    if config.optimization.enable_gradient_checkpointing:
        again = flops.forward(transformer, adapters)
    return Utilization(flops.training(transformer, adapters), again, peak * 1e12 * world.size)


def _peak(config: RunConfig, world: World) -> float | None:
    if config.tensorboard.peak_tflops is not None:
        return config.tensorboard.peak_tflops
    # Float32 runs on other units, and at rates that depend on settings.
    if world.device.type != "cuda" or config.acceleration.precision != "bf16":
        return None
    return known_peak(torch.cuda.get_device_name(world.device))


def known_peak(device: str) -> float | None:
    """Peak of a device in bf16, TFLOP/s, by its name as the driver gives it; None for one that is not known."""
    words = device.replace("-", " ").split()
    if "MIG" in words:
        return None  # a part of a device
    for name, peak in _PEAKS:
        wanted = name.split()
        if all(word in words for word in wanted):
            return peak
    return None
