"""What ComfyUI reads, merged LoRAs and whole pipelines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import LTXPipeline, LTXVideoTransformer3DModel
from safetensors import safe_open
from safetensors.torch import load_file

from dist_trainer.checkpoints.checkpoint import newest
from dist_trainer.exporting import export as module
from dist_trainer.exporting.export import Wanted, export
from dist_trainer.exporting.weights import Weights, merged
from dist_trainer.model.family import LORA_FILE, WEIGHTS
from dist_trainer.model.ltx.names import diffusers_name, original_name
from shards.errors import InputError
from tests.dist_trainer.exporting.test_export import (
    assert_same_weights,
    base_weights,
    change_config,
    forward,
    newest_weights,
)

Tensors = dict[str, torch.Tensor]
# ComfyUI's model of LTX-Video (comfy/ldm/lightricks/model.py): what its loader finds, a block's names once.
COMFYUI_MODEL = {
    "patchify_proj",
    "adaln_single.emb.timestep_embedder.linear_1",
    "adaln_single.emb.timestep_embedder.linear_2",
    "adaln_single.linear",
    "caption_projection.linear_1",
    "caption_projection.linear_2",
    "scale_shift_table",
    "proj_out",
}
COMFYUI_BLOCK = {"scale_shift_table", "ff.net.0.proj", "ff.net.2"} | {
    f"attn{number}.{name}"
    for number in (1, 2)
    for name in ("q_norm", "k_norm", "to_q", "to_k", "to_v", "to_out.0")
}


def comfyui_modules() -> set[str]:
    blocks = {f"transformer_blocks.{number}.{name}" for number in range(2) for name in COMFYUI_BLOCK}
    return COMFYUI_MODEL | blocks


def comfyui_loads(base: Tensors, lora: Tensors, strength: float) -> Tensors:
    """ComfyUI's arithmetic (comfy/lora.py, comfy/weight_adapter/lora.py), on weights by diffusers' names."""
    patched = dict(base)
    used = set()
    for name in base:
        module = f"diffusion_model.{original_name(name).removesuffix('.weight')}"
        if f"{module}.lora_B.weight" not in lora:
            continue
        up, down = lora[f"{module}.lora_B.weight"], lora[f"{module}.lora_A.weight"]
        alpha = lora[f"{module}.alpha"].item() / down.shape[0] if f"{module}.alpha" in lora else 1.0
        patched[name] = base[name] + strength * alpha * (up @ down)
        used |= {f"{module}.{end}" for end in ("lora_A.weight", "lora_B.weight", "alpha")}
    assert used == lora.keys(), "ComfyUI would pass over keys it does not know"
    return patched


def our_weights(run: Path, model_folder: Path) -> Tensors:
    """The base with the trained adapter in it; alpha is 8, the rank 4."""
    weights, adapter = base_weights(model_folder), newest_weights(run)
    for name, down in adapter.items():
        if ".lora_A." in name:
            up = adapter[name.replace(".lora_A.", ".lora_B.")]
            weights[f"{name.split('.lora_A.')[0]}.weight"] += 8 / 4 * (up @ down)
    return weights


def opened(weights: Tensors, model_folder: Path) -> LTXVideoTransformer3DModel:
    model = LTXVideoTransformer3DModel.from_pretrained(model_folder / "transformer")
    model.load_state_dict(weights)
    return model


def lora_of(run: Path) -> Tensors:
    [file] = (export(run) / "comfyui").iterdir()
    assert file.name == f"{run.name}_step_000002.safetensors"
    return load_file(file)


def test_comfyui_knows_every_key_of_a_lora(ic_lora: Path) -> None:
    modules = {f"diffusion_model.{name}" for name in comfyui_modules()}
    for key in lora_of(ic_lora):
        module = key.removesuffix(".lora_A.weight").removesuffix(".lora_B.weight").removesuffix(".alpha")
        assert module in modules
        assert module != key


@pytest.mark.parametrize("strength", [0.0, 1.0, 0.5])
def test_comfyui_makes_of_a_lora_what_diffusers_does(
    ic_lora: Path, model_folder: Path, strength: float
) -> None:
    pipeline = LTXPipeline.from_pretrained(model_folder)
    pipeline.load_lora_weights(export(ic_lora), adapter_name="ours")
    pipeline.set_adapters("ours", strength)
    theirs = forward(pipeline.transformer)
    patched = comfyui_loads(base_weights(model_folder), lora_of(ic_lora), strength)
    torch.testing.assert_close(forward(opened(patched, model_folder)), theirs, rtol=1e-4, atol=1e-5)
    expected = {0.0: base_weights(model_folder), 1.0: our_weights(ic_lora, model_folder)}
    if strength in expected:
        torch.testing.assert_close(
            forward(opened(expected[strength], model_folder)), theirs, rtol=1e-4, atol=1e-5
        )


def test_every_module_of_the_model_has_a_name_in_comfyui_and_back(model_folder: Path) -> None:
    names = base_weights(model_folder)
    assert {original_name(name).removesuffix(".weight").removesuffix(".bias") for name in names} == (
        comfyui_modules()
    )
    assert [diffusers_name(original_name(name)) for name in names] == list(names)
    assert [diffusers_name(name) for name in names] == list(names)


def test_a_full_models_single_file_is_what_comfyui_and_diffusers_open(full: Path, model_folder: Path) -> None:
    change_config(full, "model", causal_positions=True)
    folder = export(full, wanted=Wanted("comfyui"))
    [file] = (folder / "comfyui").iterdir()
    with safe_open(file, "pt") as stored:
        keys, header = set(stored.keys()), stored.metadata()
    prefix = "model.diffusion_model."
    assert {key.removeprefix(prefix).removesuffix(".weight").removesuffix(".bias") for key in keys} == (
        comfyui_modules()
    )
    assert all(key.startswith(prefix) for key in keys)
    sizes = json.loads(header["config"])["transformer"]
    config = json.loads((model_folder / "transformer" / "config.json").read_text())
    assert sizes.pop("causal_temporal_positioning") is True
    assert sizes == {key: config[key] for key in sizes}
    assert {"num_layers", "attention_head_dim", "num_attention_heads", "in_channels"} <= sizes.keys()
    model = LTXVideoTransformer3DModel.from_single_file(
        str(file), config=str(model_folder), subfolder="transformer"
    )
    assert_same_weights(model, newest_weights(full))


def test_both_formats_of_one_step_live_side_by_side(full: Path) -> None:
    export(full, wanted=Wanted("comfyui"))
    folder = export(full, wanted=Wanted("diffusers"))
    assert sorted(path.name for path in folder.iterdir()) == ["comfyui", "transformer"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_merged_lora_is_a_model_that_acts_as_base_and_adapter(
    ic_lora: Path, model_folder: Path, dtype: torch.dtype
) -> None:
    folder = export(ic_lora, wanted=Wanted("both", dtype, merge=True)) / "merged"
    expected = our_weights(ic_lora, model_folder)
    found = load_file(folder / "transformer" / WEIGHTS)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == dtype
        torch.testing.assert_close(found[name], tensor.to(dtype), rtol=1e-6, atol=1e-6)
    [single] = (folder / "comfyui").iterdir()
    assert single.name == "ic_lora_step_000002_merged.safetensors"
    assert len(load_file(single)) == len(expected)
    # The LoRA itself, which the run exported, is still there.
    assert (folder.parent / LORA_FILE).is_file()


@pytest.mark.parametrize("how", ["link", "copy"])
def test_a_whole_pipeline_opens(full: Path, how: str) -> None:
    folder = export(full, wanted=Wanted(parts=how))  # type: ignore[arg-type]
    assert (folder / "vae").is_symlink() == (how == "link")
    pipeline = LTXPipeline.from_pretrained(folder)
    assert_same_weights(pipeline.transformer, newest_weights(full))
    # Again, over the links of before; and the base is as it was.
    export(full, wanted=Wanted(parts=how))  # type: ignore[arg-type]
    assert (folder / "vae" / WEIGHTS).is_file()


@pytest.mark.parametrize("ways", [("link", "copy"), ("copy", "link")])
def test_a_whole_pipeline_is_made_anew_the_other_way(full: Path, model_folder: Path, ways: Any) -> None:
    for how in ways:
        folder = export(full, wanted=Wanted(parts=how))
        assert (folder / "vae").is_symlink() == (how == "link")
        assert (folder / "vae" / WEIGHTS).is_file()
    assert (model_folder / "vae" / WEIGHTS).is_file()


def test_a_whole_pipeline_of_a_lora_is_the_merged_one(ic_lora: Path, model_folder: Path) -> None:
    folder = export(ic_lora, wanted=Wanted(merge=True, parts="link")) / "merged"
    pipeline = LTXPipeline.from_pretrained(folder)
    expected = forward(opened(our_weights(ic_lora, model_folder), model_folder))
    torch.testing.assert_close(forward(pipeline.transformer), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("merge", [False, True])
def test_the_running_mean_is_exported_beside_the_weights(
    ic_lora: Path, monkeypatch: pytest.MonkeyPatch, merge: bool
) -> None:
    with pytest.raises(InputError, match=r"--ema: .*optimization\.ema_decay keeps one"):
        export(ic_lora, wanted=Wanted(ema=True))
    checkpoint = newest(ic_lora / "checkpoints")
    assert checkpoint is not None
    # Any kind of slices that has the weights' shapes will do.
    monkeypatch.setattr(module, "EMA", "exp_avg")
    folder = export(ic_lora, wanted=Wanted(ema=True, merge=merge))
    plain, mean = folder / LORA_FILE, folder / "exp_avg" / LORA_FILE
    if merge:
        assert (folder / "exp_avg" / "merged" / "transformer" / WEIGHTS).is_file()
        return
    for key, value in load_file(mean).items():
        name = key.removeprefix("transformer.").replace(".weight", ".default.weight")
        expected = checkpoint.read(name, 0, value.numel(), ("exp_avg",))["exp_avg"]
        assert torch.equal(value.flatten(), expected)
        assert not torch.equal(value, load_file(plain)[key])


def test_a_base_that_lacks_a_module_of_the_adapters_is_refused() -> None:
    adapter = {"block.to_q.lora_A.default.weight": (4, 8), "block.to_q.lora_B.default.weight": (8, 4)}
    with pytest.raises(InputError, match=r"--merge: the LoRA's base has no block\.to_q\.weight"):
        merged(Weights({"block.to_k.weight": (8, 8)}, torch.zeros), Weights(adapter, torch.zeros), 1.0)  # type: ignore[arg-type]


def test_what_cannot_be_is_refused(full: Path, ic_lora: Path) -> None:
    with pytest.raises(InputError, match=r"--merge: .* there is no LoRA"):
        export(full, wanted=Wanted(merge=True))
    with pytest.raises(InputError, match=r"--pipeline: .*use it with --merge"):
        export(ic_lora, wanted=Wanted(parts="link"))
    change_config(full, "model", model_source="somebody/somewhere")
    with pytest.raises(InputError):
        export(full, wanted=Wanted(parts="copy"))


@pytest.mark.parametrize("kept", [True, False])
def test_a_files_header_tells_where_it_comes_from(ic_lora: Path, kept: bool) -> None:
    facts = ic_lora / "facts.json"
    assert json.loads(facts.read_text()) == {
        "reference_downscale_factor": 1,
        "reference_temporal_scale_factor": 1,
    }
    facts.write_text('{"trigger_word": "NIMBUS", "reference_downscale_factor": 2}')
    if not kept:
        facts.unlink()
    change_config(ic_lora, "data", preprocessed_data_root="https://me:secret@host/data")
    folder = export(ic_lora)
    [comfyui] = (folder / "comfyui").iterdir()
    for file in (folder / LORA_FILE, comfyui):
        with safe_open(file, "pt") as stored:
            header = stored.metadata()
        assert header["step"] == "2"
        assert header.get("trigger_word") == ("NIMBUS" if kept else None)
        assert header.get("reference_downscale_factor") == ("2" if kept else None)
        config = yaml.safe_load(header["training_config"])
        assert config["lora"]["rank"] == 4
        assert config["data"]["preprocessed_data_root"] == "https://***@host/data", (
            "a password is nobody else's"
        )
