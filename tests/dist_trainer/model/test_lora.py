from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch

from dist_trainer.feed.collate import idle
from dist_trainer.model import ltx
from dist_trainer.model.lora import adapter_config, adapter_state, add_adapter
from shards.errors import InputError
from tests.support.models import small_transformer

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]


def test_only_the_adapters_are_trained() -> None:
    model = small_transformer()
    base = {name for name, _ in model.named_parameters()}
    names = add_adapter(model, 4, 8, 0.0, TARGETS, seed=1)
    assert len(names) == 2 * 2 * (4 + 4 + 2)  # A and B, 2 blocks, two attentions and a feed-forward
    assert all(".lora_" in name for name in names)
    assert base.isdisjoint(names)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == set(names)


def test_a_new_adapter_changes_nothing_until_it_is_trained() -> None:
    plain = small_transformer()
    adapted = deepcopy(plain)
    add_adapter(adapted, 4, 8, 0.0, TARGETS, seed=1)
    for model in (plain, adapted):
        ltx.install(model)
    inputs = idle(6, 20).inputs()
    assert torch.equal(plain(*inputs), adapted(*inputs))
    adapted(*inputs).sum().backward()
    learns = [name for name, p in adapted.named_parameters() if p.grad is not None and p.grad.any()]
    assert learns
    assert all(".lora_B." in name for name in learns)


def test_the_start_depends_on_the_seed_alone() -> None:
    states = []
    for surroundings, seed in ((0, 5), (1, 5), (0, 6)):
        model = small_transformer()
        torch.manual_seed(surroundings)
        expected_next = torch.rand(1)
        torch.manual_seed(surroundings)
        add_adapter(model, 4, 4, 0.0, ["to_q"], seed=seed)
        assert torch.equal(torch.rand(1), expected_next)
        states.append(adapter_state(model.state_dict()))
    first, again, other = states
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


@pytest.mark.parametrize(
    ("wrong", "near"),
    [("to_qq", "to_q"), ("to_out", "to_out.0"), ("norm_q", "to_q"), ("ff.net.1", "ff.net.2")],
)
def test_a_wrong_module_name_gets_the_nearest_right_ones(wrong: str, near: str) -> None:
    model = small_transformer()
    with pytest.raises(InputError, match=f"'{wrong}'.*{near}"):
        add_adapter(model, 4, 4, 0.0, ["to_k", wrong], seed=0)
    assert all(p.requires_grad for p in model.parameters())  # refused before anything was touched


def test_no_module_names_are_refused() -> None:
    with pytest.raises(InputError, match="target_modules"):
        add_adapter(small_transformer(), 4, 4, 0.0, [], seed=0)


def test_adapter_tensors_are_named_as_diffusers_names_them() -> None:
    model = small_transformer()
    add_adapter(model, 4, 4, 0.0, ["attn1.to_q"], seed=0)
    state = adapter_state(dict(model.named_parameters()))
    assert set(state) == {
        f"transformer_blocks.{block}.attn1.to_q.lora_{side}.weight" for block in (0, 1) for side in "AB"
    }
    assert state["transformer_blocks.0.attn1.to_q.lora_A.weight"].shape == (4, 32)


def test_the_configuration_is_plain_json() -> None:
    model = small_transformer()
    add_adapter(model, 4, 8, 0.1, ["to_v", "to_q"], seed=0)
    config = json.loads(json.dumps(adapter_config(model.peft_config["default"])))
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (4, 8, 0.1)
    assert config["target_modules"] == ["to_q", "to_v"]
