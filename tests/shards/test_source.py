from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from shards.errors import InputError
from shards.source import LATEST, VERSIONS, part, transformer_config
from tests.support.hub import cache, files_below

PARTS = ("transformer", "vae", "text_encoder", "tokenizer")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty hub cache, and no way to the hub."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.mark.parametrize("name", PARTS)
def test_a_local_folder_has_its_parts_in_folders(model_folder: Path, name: str) -> None:
    assert part(model_folder, name) == part(str(model_folder), name) == model_folder / name


def test_a_home_folder_may_be_written_with_a_tilde(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(model_folder.parent))
    assert part(f"~/{model_folder.name}", "vae") == model_folder / "vae"


def test_a_folder_without_the_part_is_refused_by_both_names(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"model_source: {tmp_path}: folder has no vae/"):
        part(tmp_path, "vae")


def test_a_single_file_is_a_transformer_with_its_config_beside_it(tmp_path: Path) -> None:
    file = tmp_path / "ltx.safetensors"
    file.touch()
    assert part(file, "transformer") == file
    assert transformer_config(file) == tmp_path / "config.json"
    with pytest.raises(InputError, match=r"ltx\.safetensors"):
        part(file, "vae")


@pytest.mark.parametrize(
    "source", ["/no/such/folder", "./model", "../a", "~/nothing/here", "word", "a/b/c", "LTXV_2B_0.9.4", "a/"]
)
@pytest.mark.usefixtures("hub")
def test_what_is_neither_folder_nor_id_nor_version_is_refused_without_asking_the_hub(source: str) -> None:
    with pytest.raises(InputError, match=r"no such folder, and not a hub id .* or a version name") as caught:
        part(source, "transformer")
    assert source in str(caught.value)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.usefixtures("hub")
def test_offline_a_hub_id_that_was_never_downloaded_is_named(name: str) -> None:
    with pytest.raises(InputError, match=f"model_source: .*owner/model.*{name}/") as caught:
        part("owner/model", name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.usefixtures("hub")
def test_offline_a_version_that_was_never_downloaded_names_its_repository(version: str) -> None:
    for name in PARTS:
        with pytest.raises(InputError, match="Lightricks/LTX-Video"):
            part(version, name)
    with pytest.raises(InputError, match="Lightricks/LTX-Video"):
        transformer_config(version)


def test_the_latest_version_is_a_version() -> None:
    assert LATEST in VERSIONS


@pytest.mark.parametrize("name", PARTS)
def test_a_hub_id_gives_the_part_out_of_the_hubs_cache(hub: Path, model_folder: Path, name: str) -> None:
    snapshot = cache(hub, "owner/model", files_below(model_folder, name))
    assert part("owner/model", name) == snapshot / name
    assert {path.name for path in part("owner/model", name).iterdir()} == {
        path.name for path in (model_folder / name).iterdir()
    }


@pytest.mark.parametrize(
    ("version", "repository"),
    [
        ("LTXV_2B_0.9.0", "Lightricks/LTX-Video"),
        ("LTXV_2B_0.9.1", "Lightricks/LTX-Video-0.9.1"),
        ("LTXV_2B_0.9.5", "Lightricks/LTX-Video-0.9.5"),
        ("LTXV_2B_0.9.6_DEV", "Lightricks/LTX-Video-0.9.5"),
        ("LTXV_2B_0.9.6_DISTILLED", "Lightricks/LTX-Video-0.9.5"),
        ("LTXV_13B_097_DEV", "Lightricks/LTX-Video-0.9.7-dev"),
        ("LTXV_13B_097_DISTILLED", "Lightricks/LTX-Video-0.9.7-distilled"),
    ],
)
def test_a_version_has_its_vae_and_config_in_its_own_or_its_elders_repository(
    hub: Path, model_folder: Path, version: str, repository: str
) -> None:
    snapshot = cache(
        hub, repository, files_below(model_folder, "vae") | files_below(model_folder, "transformer")
    )
    assert part(version, "vae") == snapshot / "vae"
    if VERSIONS[version][1] is None:
        assert part(version, "transformer") == snapshot / "transformer"
        assert transformer_config(version) == snapshot / "transformer" / "config.json"


@pytest.mark.parametrize("version", ["LTXV_2B_0.9.6_DEV", "LTXV_2B_0.9.6_DISTILLED"])
def test_a_version_released_as_one_file_takes_its_transformer_from_there(
    hub: Path, model_folder: Path, version: str
) -> None:
    file = VERSIONS[version][1]
    assert file is not None
    weights = model_folder / "transformer" / "diffusion_pytorch_model.safetensors"
    main = cache(hub, "Lightricks/LTX-Video", {file: weights})
    elder = cache(hub, "Lightricks/LTX-Video-0.9.5", files_below(model_folder, "transformer"))
    assert part(version, "transformer") == main / file
    config = transformer_config(version)
    assert config == elder / "transformer" / "config.json"
    assert json.loads(config.read_text())["_class_name"] == "LTXVideoTransformer3DModel"


def test_a_cache_that_holds_only_another_part_is_no_copy_of_this_one(model_folder: Path, hub: Path) -> None:
    """A login node fetched the VAE to encode; the training job has no network."""
    cache(hub, "someone/model", files_below(model_folder, "vae"))
    assert part("someone/model", "vae").is_dir()
    with pytest.raises(InputError, match=r"someone/model: .* has no transformer/"):
        part("someone/model", "transformer")
