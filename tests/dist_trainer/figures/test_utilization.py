from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_trainer.config import RunConfig
from dist_trainer.figures.utilization import Utilization, known_peak, utilization
from dist_trainer.model.family import read_config
from dist_trainer.model.flops import Flops
from dist_trainer.model.ltx.flops import forward, training
from dist_trainer.world import World

NEEDED, AGAIN = Flops(6.0, 3.0, 2.0, 1.0), Flops(2.0, 1.0, 1.0, 0.0)
TOKENS, TEXT = np.array([10, 20], np.int64), np.array([4, 5], np.int32)
WORK = 6 * 30 + 3 * 9 + 2 * (100 + 400) + (40 + 100)


def test_utilization_is_needed_work_over_what_all_devices_could_do() -> None:
    found = Utilization(NEEDED, None, peak=1000.0).figures(TOKENS, TEXT, seconds=4.0)
    assert found == {"speed/mfu": WORK / 4000}


def test_what_is_computed_twice_counts_apart() -> None:
    found = Utilization(NEEDED, AGAIN, peak=1000.0).figures(TOKENS, TEXT, seconds=4.0)
    assert found == {"speed/mfu": WORK / 4000, "speed/hfu": (WORK + 60 + 9 + 500) / 4000}


@pytest.mark.parametrize(
    ("device", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.4),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L40S", 362.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("Matrox Millennium", None),
    ],
)
def test_devices_are_known_by_name(device: str, peak: float | None) -> None:
    assert known_peak(device) == peak


ADAPTERS = {"transformer_blocks.0.attn1.to_q.lora_A.default.weight": (4, 64)}


def config(**blocks: Any) -> RunConfig:
    return RunConfig.model_validate({"data": {"preprocessed_data_root": "d"}, "lora": {}, **blocks})


def test_the_peak_of_a_cpu_is_not_known_unless_it_is_set(model_folder: Path) -> None:
    transformer = read_config(str(model_folder))
    assert utilization(config(), transformer, ADAPTERS, World(0, 4, 0)) is None
    found = utilization(config(tensorboard={"peak_tflops": 2.5}), transformer, ADAPTERS, World(0, 4, 0))
    assert found == Utilization(training(transformer, ADAPTERS), None, 1e13)


def test_what_is_counted_follows_what_is_trained_and_recomputed(model_folder: Path) -> None:
    transformer, peak = read_config(str(model_folder)), {"tensorboard": {"peak_tflops": 1.0}}
    full = config(
        **peak, model={"training_mode": "full"}, optimization={"enable_gradient_checkpointing": True}
    )
    found = utilization(full, transformer, {"proj_out.weight": (8, 64)}, World(0, 1, 0))
    assert found == Utilization(training(transformer, None), forward(transformer), 1e12)
    lora = config(**peak, optimization={"enable_gradient_checkpointing": True})
    found = utilization(lora, transformer, ADAPTERS, World(0, 1, 0))
    assert found == Utilization(training(transformer, ADAPTERS), forward(transformer, ADAPTERS), 1e12)
