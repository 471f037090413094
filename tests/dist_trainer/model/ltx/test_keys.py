from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, LTXPipeline, LTXVideoTransformer3DModel
from safetensors import safe_open

from dist_trainer.model.lora import adapter_config, adapter_state, add_adapter
from dist_trainer.model.ltx import keys
from tests.support.models import small_transformer

TARGETS = ["to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj", "ff.net.2"]


def _trained(rank: int, alpha: float) -> LTXVideoTransformer3DModel:
    """A model with an adapter that changes its output."""
    model = small_transformer()
    add_adapter(model, rank, alpha, 0.0, TARGETS, seed=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name:
                parameter.normal_(std=0.2)
    return model


def _forward(model: LTXVideoTransformer3DModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 12, 6, generator=generator),
            encoder_hidden_states=torch.randn(1, 3, 20, generator=generator),
            timestep=torch.tensor([500]),
            encoder_attention_mask=torch.ones(1, 3),
            num_frames=3,
            height=2,
            width=2,
            return_dict=False,
        )[0]


def _pipeline(transformer: LTXVideoTransformer3DModel) -> LTXPipeline:
    return LTXPipeline(
        FlowMatchEulerDiscreteScheduler(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=transformer,
    )


def _write(path: Path, model: LTXVideoTransformer3DModel, **metadata: str) -> None:
    state = adapter_state(model.state_dict())
    keys.lora_file(path, state, adapter_config(model.peft_config["default"]), metadata)


@pytest.mark.parametrize(("rank", "alpha"), [(4, 4), (4, 16), (8, 2)])
def test_the_real_pipeline_loads_the_adapter_with_its_alpha(tmp_path: Path, rank: int, alpha: int) -> None:
    model = _trained(rank, alpha)
    path = tmp_path / "lora_weights.safetensors"
    _write(path, model)
    pipeline = _pipeline(small_transformer())
    plain = _forward(pipeline.transformer)
    pipeline.load_lora_weights(str(tmp_path), weight_name=path.name)
    expected = _forward(model)
    assert (expected - plain).norm() > 0.02 * plain.norm()
    torch.testing.assert_close(_forward(pipeline.transformer), expected, rtol=1e-6, atol=1e-6)


def test_the_file_is_the_one_diffusers_would_write(tmp_path: Path) -> None:
    model = _trained(4, 16)
    _write(tmp_path / "mine.safetensors", model)
    LTXPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers=adapter_state(model.state_dict()),
        transformer_lora_adapter_metadata=deepcopy(adapter_config(model.peft_config["default"])),
        weight_name="theirs.safetensors",
    )
    with (
        safe_open(tmp_path / "mine.safetensors", "pt") as mine,
        safe_open(tmp_path / "theirs.safetensors", "pt") as theirs,
    ):
        assert mine.metadata() == theirs.metadata()
        assert set(mine.keys()) == set(theirs.keys())
        assert all(torch.equal(mine.get_tensor(key), theirs.get_tensor(key)) for key in theirs.keys())  # noqa: SIM118


def test_further_metadata_stands_beside_diffusers_own(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    _write(path, _trained(4, 16), step="500")
    with safe_open(path, "pt") as file:
        header = file.metadata()
    assert header["step"] == "500"
    assert json.loads(header["lora_adapter_metadata"])["transformer.lora_alpha"] == 16


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "lora.safetensors"
    model = _trained(4, 16)
    _write(path, model)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        keys.lora_file(path, adapter_state(model.state_dict()), {"r": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
