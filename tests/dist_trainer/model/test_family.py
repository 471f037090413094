from __future__ import annotations

import json
from pathlib import Path

import diffusers
import pytest

from dist_trainer.model.family import FAMILIES, read_config
from shards.errors import InputError


def test_a_model_folder_tells_its_family(model_folder: Path) -> None:
    config = read_config(str(model_folder))
    assert config == json.loads((model_folder / "transformer" / "config.json").read_text())
    assert config["_class_name"] in FAMILIES


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_has_its_shape_and_its_packed_forward(name: str) -> None:
    assert callable(FAMILIES[name].shape)
    assert callable(FAMILIES[name].install)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_names_a_vae_that_there_is(name: str) -> None:
    assert issubclass(getattr(diffusers, FAMILIES[name].VAE), diffusers.ModelMixin)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"config\.json: not a model's config"),
        (b"{", r"config\.json: not a model's config"),
        (b"\xff\xfe", r"config\.json: not a model's config"),
        (b"[]", "_class_name None is not one of: LTXVideoTransformer3DModel"),
        (b"{}", "_class_name None is not one of"),
        (b'{"_class_name": "UNet2DConditionModel"}', "_class_name 'UNet2DConditionModel' is not one of"),
    ],
)
def test_a_config_of_no_known_family_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    folder = tmp_path / "transformer"
    folder.mkdir()
    if content is not None:
        (folder / "config.json").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        read_config(str(tmp_path))
    assert str(caught.value).startswith("model.model_source: ")
    assert str(folder) in str(caught.value)
