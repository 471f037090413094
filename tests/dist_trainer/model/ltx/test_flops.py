from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from dist_trainer.model import ltx
from dist_trainer.model.attention import Lengths
from dist_trainer.model.flops import Flops
from dist_trainer.model.lora import add_adapter
from dist_trainer.model.ltx.flops import forward, training

LENGTHS, TEXTS, LAYERS = (300, 150), (40, 90), 3
TARGETS = {
    "attention": ("to_k", "to_q", "to_v", "to_out.0"),
    "feed-forward too": ("to_k", "to_q", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"),
}


def small() -> Any:
    torch.manual_seed(0)
    model = LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=16,
        cross_attention_dim=64,
        num_layers=LAYERS,
        caption_channels=48,
    )
    ltx.install(model)
    return model.train()


def counted(model: Any, backward: bool) -> int:
    """What PyTorch itself counts in a pack of two samples of unlike lengths."""
    tokens, text = sum(LENGTHS), sum(TEXTS)
    counter = FlopCounterMode(display=False)
    with counter, sdpa_kernel(SDPBackend.MATH):
        out = model(
            torch.randn(tokens, 8),
            torch.randn(text, 48),
            torch.tensor([500]),
            torch.zeros(tokens, dtype=torch.int64),
            torch.rand(3, tokens),
            Lengths.of(LENGTHS),
            Lengths.of(TEXTS),
        )
        if backward:
            out.sum().backward()
    return counter.get_total_flops()


def told(flops: Flops) -> float:
    return float(flops(np.array(LENGTHS), np.array(TEXTS)).sum())


@pytest.mark.filterwarnings("ignore")
def test_a_forward_pass_is_what_pytorch_counts() -> None:
    model = small()
    assert told(forward(model.config)) == pytest.approx(counted(model, backward=False), rel=2e-3)


@pytest.mark.filterwarnings("ignore")
def test_a_step_of_full_training_is_what_pytorch_counts() -> None:
    model = small()
    assert told(training(model.config, None)) == pytest.approx(counted(model, backward=True), rel=2e-3)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", TARGETS)
def test_a_step_of_a_lora_is_what_pytorch_counts(targets: str) -> None:
    """Adapters add their own, and frozen weights need no gradient."""
    model = small()
    add_adapter(model, 8, 8, 0.0, TARGETS[targets], seed=0)
    adapters = {name: tuple(p.shape) for name, p in model.named_parameters() if p.requires_grad}
    found = told(training(model.config, adapters))
    assert found == pytest.approx(counted(model, backward=True), rel=3e-3)
    assert found < 0.9 * told(training(model.config, None))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("targets", [None, *TARGETS])
def test_what_gradient_checkpointing_adds_is_about_one_forward_pass(targets: str | None) -> None:
    """With that of the adapters."""
    plain, again = small(), small()
    for model in (plain, again) if targets else ():
        add_adapter(model, 32, 32, 0.0, TARGETS[targets or ""], seed=0)
    again.enable_gradient_checkpointing()
    added = counted(again, backward=True) - counted(plain, backward=True)
    adapters = {name: tuple(p.shape) for name, p in plain.named_parameters() if p.requires_grad}
    assert added == pytest.approx(told(forward(plain.config, adapters if targets else None)), rel=0.03)


def test_the_2b_model_takes_six_flops_for_a_parameter_and_token_and_attention_beside_it() -> None:
    config = {
        "num_attention_heads": 32,
        "attention_head_dim": 64,
        "num_layers": 28,
        "in_channels": 128,
        "out_channels": 128,
        "cross_attention_dim": 2048,
        "caption_channels": 4096,
    }
    full = training(config, None)
    in_layers_and_seen_by_tokens = 28 * 14 * 2048**2
    assert full.token == pytest.approx(6 * in_layers_and_seen_by_tokens, rel=2e-3)
    assert full.pair == 3 * 28 * 4 * 2048
