from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from diffusers import LTXPipeline, LTXVideoTransformer3DModel
from diffusers.loaders.lora_base import LORA_ADAPTER_METADATA_KEY
from safetensors import safe_open
from safetensors.torch import load_file

from dist_trainer.checkpoints.checkpoint import MASTER, Checkpoint, newest, open_checkpoint
from dist_trainer.exporting import export as module
from dist_trainer.exporting import transformer
from dist_trainer.exporting.export import Wanted, export
from dist_trainer.model.family import WEIGHTS
from shards.errors import InputError

LORA = "pytorch_lora_weights.safetensors"
Tensors = dict[str, torch.Tensor]


def trained(checkpoint: Checkpoint) -> Tensors:
    """The weights a checkpoint holds, read in one piece each."""
    sizes = {name: torch.Size(shape) for name, shape in checkpoint.shapes.items()}
    return {name: checkpoint.read(name, 0, size.numel())[MASTER].view(size) for name, size in sizes.items()}


def newest_weights(run: Path) -> Tensors:
    checkpoint = newest(run / "checkpoints")
    assert checkpoint is not None
    return trained(checkpoint)


def base_weights(model_folder: Path) -> Tensors:
    return load_file(model_folder / "transformer" / WEIGHTS)


def forward(model: Any) -> torch.Tensor:
    """diffusers' own forward on a fixed input: 2 frames of 3x4 latents, 5 text tokens; [1,24,8]."""
    generator = torch.Generator().manual_seed(3)
    config = model.config
    with torch.no_grad():
        return model(
            hidden_states=torch.randn(1, 24, config.in_channels, generator=generator),
            encoder_hidden_states=torch.randn(1, 5, config.caption_channels, generator=generator),
            timestep=torch.tensor([[700]]),
            encoder_attention_mask=torch.ones(1, 5),
            num_frames=2,
            height=3,
            width=4,
            return_dict=False,
        )[0]


def assert_same_weights(model: LTXVideoTransformer3DModel, expected: Tensors) -> None:
    state = model.state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(state[name], tensor), name


def change_config(run: Path, block: str, **values: Any) -> None:
    """Rewrite the config a run was trained with."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    config[block].update(values)
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def test_diffusers_opens_a_full_export_with_the_trained_weights(full: Path, model_folder: Path) -> None:
    folder = export(full)
    assert folder == full / "exports" / "step_000002"
    model = LTXVideoTransformer3DModel.from_pretrained(folder / "transformer")
    assert_same_weights(model, newest_weights(full))
    assert model.dtype == torch.float32
    moved = [
        name for name, base in base_weights(model_folder).items() if (model.state_dict()[name] != base).any()
    ]
    assert len(moved) > 0.9 * len(base_weights(model_folder))


def test_a_full_export_keeps_the_models_config(full: Path, model_folder: Path) -> None:
    written = json.loads((export(full) / "transformer" / "config.json").read_text())
    assert written == json.loads((model_folder / "transformer" / "config.json").read_text())


def test_a_pipeline_runs_with_a_full_export(full: Path, model_folder: Path) -> None:
    transformer = LTXVideoTransformer3DModel.from_pretrained(export(full) / "transformer")
    pipeline = LTXPipeline.from_pretrained(model_folder, transformer=transformer)
    pipeline.set_progress_bar_config(disable=True)
    size = {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
    assert pipeline("a red square", **size, output_type="np").frames.shape == (1, 5, 32, 32, 3)


def test_the_run_itself_exports_at_its_end(finished_runs: Path) -> None:
    exported = finished_runs / "full" / "exports" / "step_000002" / "transformer" / WEIGHTS
    for name, tensor in newest_weights(finished_runs / "full").items():
        assert torch.equal(load_file(exported)[name], tensor)
    assert (finished_runs / "ic_lora" / "exports" / "step_000002" / LORA).is_file()


@pytest.mark.parametrize("limit", [1, 100_000, 10**9])
def test_large_models_are_exported_in_several_files(
    full: Path, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformer, "_FILE_BYTES", limit)
    folder = export(full) / "transformer"
    expected = newest_weights(full)
    assert_same_weights(LTXVideoTransformer3DModel.from_pretrained(folder), expected)
    files = sorted(folder.glob("*.safetensors"))
    held = [load_file(file) for file in files]
    assert sum(map(len, held)) == len(expected)
    for tensors in held:
        assert len(tensors) == 1 or sum(tensor.nbytes for tensor in tensors.values()) <= limit
    index = folder / f"{WEIGHTS}.index.json"
    if limit == 10**9:
        assert [file.name for file in files] == [WEIGHTS]
        assert not index.exists()
    else:
        total = sum(tensor.nbytes for tensor in expected.values())
        # Two neighbours never fit into one file.
        assert 3 < len(files) <= 2 * total / limit + 1
        assert json.loads(index.read_text())["metadata"]["total_size"] == total


@pytest.mark.parametrize(
    ("precision", "asked", "expected"),
    [
        (None, None, torch.float32),
        ("bf16", None, torch.bfloat16),
        ("bf16", torch.float32, torch.float32),
        (None, torch.bfloat16, torch.bfloat16),
    ],
)
def test_a_full_export_is_in_what_the_run_computed_in_or_what_is_asked_for(
    full: Path, precision: str | None, asked: torch.dtype | None, expected: torch.dtype
) -> None:
    change_config(full, "acceleration", mixed_precision_mode=precision)
    written = load_file(export(full, wanted=Wanted(dtype=asked)) / "transformer" / WEIGHTS)
    for name, tensor in newest_weights(full).items():
        assert torch.equal(written[name], tensor.to(expected))


def test_an_earlier_checkpoint_can_be_exported(full: Path) -> None:
    folder = export(full, steps=1)
    assert folder == full / "exports" / "step_000001"
    earlier = trained(open_checkpoint(full / "checkpoints", 1))
    assert_same_weights(LTXVideoTransformer3DModel.from_pretrained(folder / "transformer"), earlier)
    assert any((tensor != earlier[name]).any() for name, tensor in newest_weights(full).items())


def test_the_pipeline_loads_an_adapter_to_the_trained_forward(ic_lora: Path, model_folder: Path) -> None:
    pipeline = LTXPipeline.from_pretrained(model_folder)
    plain = forward(pipeline.transformer)
    adapter = newest_weights(ic_lora)
    with torch.no_grad():
        for name, down in adapter.items():
            if ".lora_A." in name:
                layer = pipeline.transformer.get_submodule(name.split(".lora_A.")[0])
                up = adapter[name.replace(".lora_A.", ".lora_B.")]
                # alpha 8 over rank 4.
                layer.weight += 2.0 * up @ down
    expected = forward(pipeline.transformer)
    pipeline = LTXPipeline.from_pretrained(model_folder)
    pipeline.load_lora_weights(export(ic_lora))
    found = forward(pipeline.transformer)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert (found - plain).abs().max() > 100 * (found - expected).abs().max()


def test_an_adapters_file_tells_its_settings(ic_lora: Path, model_folder: Path) -> None:
    with safe_open(export(ic_lora) / LORA, "pt") as file:
        metadata = file.metadata()
        names = set(file.keys())
    settings = json.loads(metadata[LORA_ADAPTER_METADATA_KEY])
    assert (settings["transformer.r"], settings["transformer.lora_alpha"]) == (4, 8)
    assert metadata["base_model"] == str(model_folder)
    assert (metadata["training_mode"], metadata["step"]) == ("ic_lora", "2")
    assert len(names) == len(newest_weights(ic_lora))
    assert all(name.startswith("transformer.transformer_blocks.") for name in names)


def test_an_adapter_without_references_is_called_lora(ic_lora: Path) -> None:
    change_config(ic_lora, "conditioning", mode="none")
    with safe_open(export(ic_lora) / LORA, "pt") as file:
        assert file.metadata()["training_mode"] == "lora"


def test_exporting_again_replaces_the_export(full: Path) -> None:
    folder = export(full)
    (folder / "transformer" / "stale").touch()
    assert export(full) == folder
    assert not (folder / "transformer" / "stale").exists()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_export_is_on_the_disk_when_it_is_told_done(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folders' names too: DONE, which is written next, must not outlive it."""
    synced: list[tuple[Path, set[str]]] = []

    def fsync(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced.append((path, {entry.name for entry in path.iterdir()} if path.is_dir() else set()))

    shutil.rmtree(full / "exports")
    monkeypatch.setattr(os, "fsync", fsync)
    folder = export(full, wanted=Wanted(formats="both"))
    last = dict(synced)
    assert {"transformer", "comfyui"} <= last[folder]
    assert folder.name in last[folder.parent]
    assert "exports" in last[full]


def test_what_a_killed_export_left_goes_once_it_is_old(full: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left = full / "exports" / ".step_000001.0123abcd.tmp"
    (left / "transformer").mkdir(parents=True)
    (left / "transformer" / "half.safetensors").touch()
    export(full)
    assert left.exists(), "another export may be writing it"
    monkeypatch.setattr(module, "_LEFT_S", -1.0)
    folder = export(full)
    assert sorted(path.name for path in (folder / "transformer").iterdir()) == ["config.json", WEIGHTS]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_an_export_that_fails_leaves_the_one_before(full: Path) -> None:
    folder = export(full)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    victim = next((full / "checkpoints" / "step_000002").glob("rank_*"))
    victim.write_bytes(b"\xff" * victim.stat().st_size)
    with pytest.raises(InputError, match=str(victim)):
        export(full)
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"{tmp_path}: no config\.yaml"):
        export(tmp_path)


def test_a_run_without_a_checkpoint_is_refused(full: Path) -> None:
    shutil.rmtree(full / "checkpoints")
    with pytest.raises(InputError, match="checkpoints: no complete checkpoint"):
        export(full)


def test_a_step_without_a_checkpoint_is_refused(full: Path) -> None:
    with pytest.raises(InputError, match=r"step_000007/checkpoint\.json: No such file"):
        export(full, steps=7)
