from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import LTXPipeline
from safetensors.torch import load_file, save_file

from dist_trainer.config.model import LoraConfig
from dist_trainer.exporting.export import Wanted, export
from dist_trainer.model.family import LORA_FILE, WEIGHTS
from dist_trainer.model.lora import add_adapter
from dist_trainer.model.start import Start, find_start
from dist_trainer.model.start_weights import check_rank, start_adapter
from dist_trainer.tiny.model import tiny_transformer
from shards.dataset.opened import Dataset
from shards.errors import InputError
from tests.dist_trainer.exporting.test_export import forward, newest_weights
from tests.support.forked import launch, several
from tests.support.runs import lora_blocks, tiny_config, write_config

TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
BF16 = {"acceleration": {"mixed_precision_mode": "bf16"}}
BLOCK = "transformer_blocks.0.attn1.to_q"


def fresh(rank: int = 4, alpha: int = 8, targets: tuple[str, ...] = TARGETS) -> tuple[Any, LoraConfig]:
    """A model with an adapter that has learned nothing."""
    model = tiny_transformer()
    add_adapter(model, rank, alpha, 0.0, targets, seed=1)
    return model, LoraConfig(rank=rank, alpha=alpha, target_modules=targets)


def pair(module: str, rank: int = 4, ends: tuple[str, str] = ("lora_A", "lora_B")) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(len(module))
    return {
        f"{module}.{ends[0]}.weight": torch.randn(rank, 64, generator=generator),
        f"{module}.{ends[1]}.weight": torch.randn(64, rank, generator=generator),
    }


def added(model: Any, module: str = BLOCK) -> torch.Tensor:
    """What the adapter adds to a module's weight, as peft computes it."""
    return model.get_submodule(module).get_delta_weight("default").detach()


def start(path: Path, tensors: dict[str, torch.Tensor], **metadata: str) -> Start:
    save_file(tensors, path, metadata=metadata)
    return Start("adapter", str(path))


def at(tensors: dict[str, torch.Tensor]) -> torch.Tensor:
    down, up = tensors.values()
    return up @ down


@pytest.mark.parametrize("alpha", [4, 8, 16])
@pytest.mark.parametrize("keys", ["diffusers", "comfyui"])
def test_an_exported_adapter_acts_as_it_did_whatever_alpha_is_trained_on(
    finished_runs: Path, model_folder: Path, keys: str, alpha: int
) -> None:
    folder = finished_runs / "ic_lora" / "exports" / "step_000002"
    file = {"diffusers": folder / LORA_FILE, "comfyui": next((folder / "comfyui").iterdir())}[keys]
    model, lora = fresh(alpha=alpha)
    notes = start_adapter(model, Start("adapter", str(file)), lora)
    assert any("alpha / rank is 2, of this run" in note for note in notes) == (alpha != 8)
    pipeline = LTXPipeline.from_pretrained(model_folder)
    pipeline.load_lora_weights(folder, weight_name=LORA_FILE)
    torch.testing.assert_close(forward(model), forward(pipeline.transformer), rtol=1e-4, atol=1e-5)


def test_a_runs_checkpoint_starts_an_adapter_exactly(finished_runs: Path) -> None:
    model, lora = fresh()
    assert start_adapter(model, find_start(str(finished_runs / "ic_lora"), "lora"), lora) == []
    own = {name: value for name, value in model.named_parameters() if ".lora_" in name}
    for name, value in newest_weights(finished_runs / "ic_lora").items():
        assert torch.equal(own[name], value)


@pytest.mark.parametrize(
    ("prefix", "ends"),
    [
        ("transformer.", ("lora_A", "lora_B")),
        ("diffusion_model.", ("lora_A", "lora_B")),
        ("diffusion_model.", ("lora_down", "lora_up")),
        ("base_model.model.", ("lora_A.default", "lora_B.default")),
        ("", ("lora_A", "lora_B")),
    ],
)
def test_somebodys_lora_without_alpha_is_as_strong_as_other_programs_take_it(
    tmp_path: Path, prefix: str, ends: tuple[str, str]
) -> None:
    tensors = pair(prefix + BLOCK, ends=ends)
    model, lora = fresh(alpha=2)
    notes = start_adapter(model, start(tmp_path / "lora.safetensors", tensors), lora)
    torch.testing.assert_close(added(model), at(tensors))
    assert "has nothing for 15 modules" in notes[-1]
    # What the file has nothing for starts as a new adapter does.
    assert not added(model, "transformer_blocks.1.attn2.to_v").any()


def test_alpha_is_heeded_where_a_file_tells_it(tmp_path: Path) -> None:
    tensors = pair(f"diffusion_model.{BLOCK}")
    for number, told in enumerate(
        (
            ({f"diffusion_model.{BLOCK}.alpha": torch.tensor(12.0)}, {}),
            ({}, {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 12, "transformer.r": 4})}),
            ({}, {"lora_adapter_metadata": json.dumps({"transformer.alpha_pattern": {BLOCK: 12}})}),
        )
    ):
        model, lora = fresh()
        file = start(tmp_path / f"{number}.safetensors", {**tensors, **told[0]}, **told[1])
        start_adapter(model, file, lora)
        torch.testing.assert_close(added(model), 3 * at(tensors))


def test_a_header_may_tell_that_alpha_is_over_the_ranks_root(tmp_path: Path) -> None:
    tensors = pair(f"transformer.{BLOCK}")
    told = {"transformer.lora_alpha": 12, "transformer.r": 4, "transformer.use_rslora": True}
    model, lora = fresh()
    file = start(tmp_path / "lora.safetensors", tensors, lora_adapter_metadata=json.dumps(told))
    start_adapter(model, file, lora)
    torch.testing.assert_close(added(model), 6 * at(tensors))


@pytest.mark.parametrize(
    "odd",
    [
        {f"{BLOCK}.alpha": torch.ones(2)},
        {f"{BLOCK}.lora_A.weight": torch.tensor(1.0)},
        {f"{BLOCK}.lora_A.weight": torch.ones(0, 64)},
    ],
)
def test_tensors_of_odd_shapes_are_no_loras(tmp_path: Path, odd: dict[str, torch.Tensor]) -> None:
    file = start(tmp_path / "lora.safetensors", {**pair(BLOCK), **odd})
    with pytest.raises(InputError, match=f"no LoRA's pairs of A and B .{next(iter(odd))}"):
        check_rank(file, LoraConfig(rank=4, alpha=8, target_modules=TARGETS))


def test_comfyuis_names_of_modules_are_known(tmp_path: Path) -> None:
    tensors = {
        "diffusion_model.patchify_proj.lora_A.weight": torch.ones(4, 8),
        "diffusion_model.patchify_proj.lora_B.weight": torch.ones(64, 4),
    }
    model, lora = fresh(alpha=4, targets=("proj_in",))
    start_adapter(model, start(tmp_path / "lora.safetensors", tensors), lora)
    assert torch.equal(added(model, "proj_in"), torch.full((64, 8), 4.0))


def test_another_rank_is_refused_with_both_named(tmp_path: Path) -> None:
    file = start(tmp_path / "lora.safetensors", pair(f"transformer.{BLOCK}", rank=16))
    with pytest.raises(
        InputError, match=r"lora\.safetensors: its rank is 16, lora\.rank is 4; set lora\.rank to 16"
    ):
        check_rank(file, LoraConfig(rank=4))


@pytest.mark.parametrize(
    ("tensors", "said"),
    [
        (
            {**pair(f"transformer.{BLOCK}"), **pair("transformer.transformer_blocks.0.ff.net.2")},
            r"trains 1 modules that lora\.target_modules leaves out, .*; add ff\.net\.2 there",
        ),
        (
            pair("transformer.transformer_blocks.7.attn1.to_q"),
            r"transformer_blocks\.7\.attn1\.to_q is no module",
        ),
        (pair(f"transformer.{BLOCK}") | {"transformer.x.dora_scale": torch.ones(1)}, "no LoRA's pairs"),
        ({f"transformer.{BLOCK}.lora_A.weight": torch.ones(4, 64)}, "no LoRA's pairs"),
        (
            {
                f"transformer.{BLOCK}.lora_A.weight": torch.ones(4, 32),
                f"transformer.{BLOCK}.lora_B.weight": torch.ones(64, 4),
            },
            r"has \(4, 32\) there, \(4, 64\) here; was it made for another base model",
        ),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], said: str
) -> None:
    model, lora = fresh()
    with pytest.raises(InputError, match=rf"model\.load_checkpoint: .*{said}"):
        start_adapter(model, start(tmp_path / "lora.safetensors", tensors), lora)


@pytest.fixture(scope="module")
def started(
    model_folder: Path, paired_dataset: Dataset, finished_runs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """Runs of one step at learning rate 0 on two ranks, started from what others have trained."""
    root = tmp_path_factory.mktemp("started")
    still = {"steps": 1, "learning_rate": 0.0}
    full, ic_lora = finished_runs / "full", finished_runs / "ic_lora"

    def write(name: str, load: Path, **blocks: Any) -> Path:
        blocks["model"] = {**blocks.get("model", {}), "load_checkpoint": str(load)}
        config = tiny_config(model_folder, paired_dataset.root, root / name, optimization=still, **blocks)
        return write_config(root / f"{name}.yaml", config)

    several(
        2,
        write("full", full, **BF16),
        write("from_export", full / "exports" / "step_000002", **BF16, deepspeed={"stage": 0}),
        write("ic_lora", ic_lora, **lora_blocks(reference=True), **BF16),
        write(
            "from_file",
            ic_lora / "exports" / "step_000002",
            **lora_blocks(reference=True),
            **BF16,
            deepspeed={"stage": 2},
        ),
        write("lora_on_full", full, **lora_blocks()),
        logs=root / "logs",
    )
    return root


@pytest.mark.parametrize(
    ("run", "origin"),
    [("full", "full"), ("from_export", "full"), ("ic_lora", "ic_lora"), ("from_file", "ic_lora")],
)
def test_a_run_begins_with_the_weights_it_is_given(
    started: Path, finished_runs: Path, run: str, origin: str
) -> None:
    """To the bit, on two ranks, computing in bf16 at ZeRO stages 0, 2 and 3; at learning rate 0 it gives back what it
    read: a checkpoint, or float32 files.
    """
    found, expected = newest_weights(started / run), newest_weights(finished_runs / origin)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_lora_on_a_trained_model_is_merged_into_that_model(started: Path, finished_runs: Path) -> None:
    folder = export(started / "lora_on_full", wanted=Wanted(merge=True)) / "merged" / "transformer"
    # It has learned nothing, so it adds nothing.
    for name, value in newest_weights(finished_runs / "full").items():
        assert torch.equal(load_file(folder / WEIGHTS)[name], value), name


def test_a_restart_needs_the_start_weights_no_more_and_refuses_others(
    started: Path, model_folder: Path, paired_dataset: Dataset, tmp_path: Path
) -> None:
    """What it began from may be gone by then; another start would change nothing, so it is refused."""
    config = started / "ic_lora.yaml"
    gone = tmp_path / "gone"
    state = json.loads((started / "ic_lora" / "state.json").read_text())
    assert state["started_from"]["kind"] == "adapter"
    (started / "ic_lora" / "state.json").write_text(
        json.dumps(
            state | {"load_checkpoint": str(gone), "started_from": {"kind": "adapter", "place": str(gone)}}
        )
    )
    more = "optimization.steps=2"
    ended = launch(1, config, f"model.load_checkpoint={gone}", more, logs=tmp_path / "logs")
    assert ended.codes == [0], str(ended)
    ended = launch(1, config, more, "optimization.steps=3", logs=tmp_path / "logs")
    assert ended.codes == [2]
    assert "load_checkpoint: was" in ended.errors[0]
