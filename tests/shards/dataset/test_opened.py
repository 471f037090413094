from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from shards.dataset.info import DatasetInfo, Source, pack_embeds, read_info, write_info
from shards.dataset.manifest import MANIFEST_NAME, Manifest, write_manifest
from shards.dataset.opened import open_dataset
from shards.doctor.diagnose import diagnose
from shards.errors import InputError
from shards.geometry import Scale
from tests.support.damage import UNFINISHED, half_encoded
from tests.support.datasets import write_dataset


def some_info() -> DatasetInfo:
    return DatasetInfo(
        channels=4,
        text_width=16,
        scale=Scale(4, 8),
        vae=Source("a/b", "f00"),
        text_encoder=Source("c", "f01"),
        null_prompt_embeds=pack_embeds(torch.ones(2, 16, dtype=torch.bfloat16)),
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    write_info(tmp_path, some_info())
    assert read_info(tmp_path) == some_info()


def test_the_null_embedding_survives_the_text_form(tmp_path: Path) -> None:
    embeds = torch.randn(3, 16).to(torch.bfloat16)
    info = DatasetInfo(channels=4, text_width=16, scale=Scale(4, 8), null_prompt_embeds=pack_embeds(embeds))
    write_info(tmp_path, info)
    found = read_info(tmp_path).null_embeds()
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, embeds)


def test_a_dataset_without_null_embedding_says_so() -> None:
    with pytest.raises(InputError, match="null_prompt_embeds"):
        DatasetInfo(channels=4, text_width=16, scale=Scale(4, 8)).null_embeds()


def test_open_gives_description_and_samples(tmp_path: Path) -> None:
    write_dataset(tmp_path, 5, channels=6)
    dataset = open_dataset(tmp_path)
    assert len(dataset.manifest) == 5
    assert dataset.info.channels == 6
    assert dataset.root == tmp_path


@pytest.mark.parametrize("inner", ["", ".precomputed"])
def test_a_folder_of_the_predecessor_says_how_it_is_imported(tmp_path: Path, inner: str) -> None:
    for name in ("latents", "conditions"):
        (tmp_path / inner / name).mkdir(parents=True)
    with pytest.raises(InputError, match="ltx-shards import"):
        open_dataset(tmp_path)


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere does not exist"):
        open_dataset(tmp_path / "nowhere")


def test_a_folder_that_is_no_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"not a dataset.*ltx-shards encode"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("name", "advice"), [("dataset.json", "compression ratios.*--like"), (MANIFEST_NAME, "ltx-shards index")]
)
def test_a_missing_part_says_what_to_do(tmp_path: Path, name: str, advice: str) -> None:
    write_dataset(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(InputError, match=f"{name} is missing.*{advice}"):
        open_dataset(tmp_path)


def test_an_empty_dataset_is_refused(tmp_path: Path) -> None:
    write_info(tmp_path, some_info())
    write_manifest(tmp_path, Manifest.from_rows([]))
    with pytest.raises(InputError, match="holds no samples"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2.*update"),
        ({"version": "new"}, "not a dataset description"),
        ({"scale": {"temporal": 8}}, "lacks or garbles.*spatial"),
        ({"scale": [8, 32]}, "lacks or garbles"),
        ({"vae": None}, "lacks or garbles"),
        ({"version": float("inf")}, "not a dataset description"),
        ({"channels": float("inf")}, "lacks or garbles"),
        ({"channels": 0}, "lacks or garbles.*at least 1"),
        ({"scale": {"temporal": 8, "spatial": 0}}, "lacks or garbles.*at least 1"),
    ],
)
def test_a_description_that_cannot_be_used_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    write_dataset(tmp_path)
    path = tmp_path / "dataset.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        open_dataset(tmp_path)


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "[]", "null"])
def test_a_description_that_is_not_json_is_refused(tmp_path: Path, text: str) -> None:
    write_dataset(tmp_path)
    (tmp_path / "dataset.json").write_text(text)
    with pytest.raises(InputError, match="not a dataset description"):
        open_dataset(tmp_path)


def test_describing_a_dataset_needs_no_torch() -> None:
    import subprocess
    import sys

    modules = "shards.dataset.opened, shards.dataset.index, shards.dataset.stats, shards.cli"
    code = f"import sys, {modules}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("shards", [True, False])
@pytest.mark.parametrize("look", [open_dataset, diagnose])
def test_a_dataset_that_is_being_encoded_says_so(
    tmp_path: Path, look: Callable[[Path], object], shards: bool
) -> None:
    write_dataset(tmp_path)
    half_encoded(tmp_path, 5, 2)
    if not shards:
        shutil.rmtree(tmp_path / "shards")
    with pytest.raises(InputError) as error:
        look(tmp_path)
    assert str(error.value) == UNFINISHED.format(tmp_path)
