from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from diffusers import LTXVideoTransformer3DModel
from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from dist_trainer.feed.collate import idle
from dist_trainer.model.family import WEIGHTS
from dist_trainer.model.model import load_transformer
from shards.errors import InputError
from shards.source import VERSIONS
from tests.support.hub import cache, files_below

PLAIN = {"zero_optimization": {"stage": 0}}
# What diffusers' loader of single files renames, backwards.
ORIGINAL_NAMES = {
    "proj_in": "patchify_proj",
    "time_embed": "adaln_single",
    "norm_q": "q_norm",
    "norm_k": "k_norm",
}


@pytest.fixture(scope="module")
def stored(model_folder: Path) -> dict[str, torch.Tensor]:
    """The tiny model's weights as its file holds them."""
    return load_file(model_folder / "transformer" / WEIGHTS)


@pytest.fixture
def copy(model_folder: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model's transformer that a test may spoil."""
    shutil.copytree(model_folder / "transformer", tmp_path / "model" / "transformer")
    return tmp_path / "model"


def weights(source: Path | str, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    model = load_transformer(str(source), dtype, PLAIN, rank=0)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assert_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def original_file(path: Path, stored: dict[str, torch.Tensor]) -> Path:
    """The weights as Lightricks publishes them: one file, their names, the VAE in it too."""
    renamed = {}
    for name, tensor in stored.items():
        for ours, theirs in ORIGINAL_NAMES.items():
            name = name.replace(ours, theirs)
        renamed[f"model.diffusion_model.{name}"] = tensor
    assert renamed.keys().isdisjoint(stored)
    save_file({**renamed, "vae.encoder.conv_in.conv.weight": torch.zeros(2)}, path)
    return path


def test_a_folders_weights_are_loaded_bit_by_bit(model_folder: Path, stored: dict[str, torch.Tensor]) -> None:
    assert_equal(weights(model_folder), stored)


def test_weights_are_cast_to_what_the_run_computes_in(
    model_folder: Path, stored: dict[str, torch.Tensor]
) -> None:
    expected = {name: tensor.bfloat16() for name, tensor in stored.items()}
    assert_equal(weights(model_folder, torch.bfloat16), expected)


def test_weights_stored_in_bfloat16_train_in_float32(copy: Path, stored: dict[str, torch.Tensor]) -> None:
    save_file({name: t.bfloat16() for name, t in stored.items()}, copy / "transformer" / WEIGHTS)
    assert_equal(weights(copy), {name: t.bfloat16().float() for name, t in stored.items()})


def test_a_folder_with_several_files_and_an_index_is_loaded_bit_by_bit(
    model_folder: Path, tmp_path: Path, stored: dict[str, torch.Tensor]
) -> None:
    model = LTXVideoTransformer3DModel.from_pretrained(model_folder / "transformer")
    model.save_pretrained(tmp_path / "transformer", max_shard_size="150KB")
    assert len(list((tmp_path / "transformer").glob("*-of-*.safetensors"))) > 2
    assert_equal(weights(tmp_path), stored)


def test_a_single_file_in_the_original_layout_is_loaded_bit_by_bit(
    model_folder: Path, tmp_path: Path, stored: dict[str, torch.Tensor]
) -> None:
    file = original_file(tmp_path / "ltxv.safetensors", stored)
    shutil.copy(model_folder / "transformer" / "config.json", tmp_path)
    assert_equal(weights(file), stored)


def test_a_version_released_as_a_single_file_is_loaded_from_the_hubs_cache(
    model_folder: Path, tmp_path: Path, stored: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    elder, name = VERSIONS["LTXV_2B_0.9.6_DEV"]
    assert name is not None
    file = original_file(tmp_path / "original.safetensors", stored)
    cache(tmp_path / "hub", "Lightricks/LTX-Video", {name: file})
    cache(tmp_path / "hub", elder, files_below(model_folder, "transformer"))
    assert_equal(weights("LTXV_2B_0.9.6_DEV"), stored)


def test_the_model_takes_packs(model_folder: Path) -> None:
    model = load_transformer(str(model_folder), torch.float32, PLAIN, rank=0)
    config = model.config
    out = model(*idle(config.in_channels, config.caption_channels).inputs())
    assert out.shape == (1, config.out_channels)


def test_under_zero_3_what_was_loaded_is_what_was_stored(
    finished_runs: Path, stored: dict[str, torch.Tensor]
) -> None:
    """A run at learning rate 0 gives back what it read."""
    [exported] = (finished_runs / "still" / "exports").glob(f"*/transformer/{WEIGHTS}")
    assert_equal(load_file(exported), stored)


def lose(tensors: dict[str, torch.Tensor]) -> None:
    del tensors["proj_out.bias"]


def add(tensors: dict[str, torch.Tensor]) -> None:
    tensors["audio_proj.weight"] = torch.zeros(2)


def reshape(tensors: dict[str, torch.Tensor]) -> None:
    tensors["proj_out.weight"] = torch.zeros(9, 64)


def transpose(tensors: dict[str, torch.Tensor]) -> None:
    # The same number of elements: a flat copy would go through.
    tensors["proj_out.weight"] = tensors["proj_out.weight"].T.contiguous()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lose, r"do not fit config.json: missing \['proj_out.bias'\], unknown \[\]"),
        (add, r"do not fit config.json: missing \[\], unknown \['audio_proj.weight'\]"),
        (reshape, r"\.safetensors: proj_out.weight is \(9, 64\), config.json says \(8, 64\)"),
        (transpose, r"\.safetensors: proj_out.weight is \(64, 8\), config.json says \(8, 64\)"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    copy: Path,
    stored: dict[str, torch.Tensor],
    spoil: Callable[[dict[str, torch.Tensor]], None],
    message: str,
) -> None:
    spoiled = dict(stored)
    spoil(spoiled)
    save_file(spoiled, copy / "transformer" / WEIGHTS)
    with pytest.raises(InputError, match=message):
        weights(copy)


def test_a_folder_with_pickles_only_is_refused(copy: Path, stored: dict[str, torch.Tensor]) -> None:
    (copy / "transformer" / WEIGHTS).unlink()
    torch.save(stored, copy / "transformer" / "diffusion_pytorch_model.bin")
    with pytest.raises(InputError, match=rf"{copy}/transformer: no {WEIGHTS} .*must be safetensors"):
        weights(copy)


@pytest.mark.parametrize("bytes_left", [0, 4, 100, -1])
def test_a_truncated_weights_file_is_named(copy: Path, bytes_left: int) -> None:
    file = copy / "transformer" / WEIGHTS
    file.write_bytes(file.read_bytes()[:bytes_left])
    with pytest.raises(InputError, match=f"{file}: damaged weights file"):
        weights(copy)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": []}'])
def test_a_damaged_index_is_named(copy: Path, content: str) -> None:
    index = copy / "transformer" / f"{WEIGHTS}.index.json"
    index.write_text(content)
    with pytest.raises(InputError, match=f"{index}: not an index"):
        weights(copy)


def test_a_file_that_the_index_names_and_is_not_there_is_named(
    copy: Path, stored: dict[str, torch.Tensor]
) -> None:
    (copy / "transformer" / WEIGHTS).unlink()
    index = {"weight_map": dict.fromkeys(stored, "part-2.safetensors")}
    (copy / "transformer" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match=r"part-2\.safetensors: .*missing"):
        weights(copy)


def test_a_tensor_that_is_not_in_the_file_the_index_names_is_refused(
    copy: Path, stored: dict[str, torch.Tensor]
) -> None:
    index = {"weight_map": dict.fromkeys(stored, WEIGHTS)}
    (copy / "transformer" / f"{WEIGHTS}.index.json").write_text(json.dumps(index))
    save_file({k: v for k, v in stored.items() if k != "proj_in.bias"}, copy / "transformer" / WEIGHTS)
    with pytest.raises(InputError, match=rf"{WEIGHTS}: .*proj_in\.bias"):
        weights(copy)
