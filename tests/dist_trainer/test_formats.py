"""Whatever format the samples came in, a run trains the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dist_trainer.config import load
from dist_trainer.feed.data import open_data
from shards.dataset.convert import convert
from shards.dataset.index import index
from shards.dataset.opened import Dataset, open_dataset
from shards.errors import InputError
from shards.formats.mds import COLUMNS
from shards.formats.tar import read_shard
from shards.prepare.encode.models import load_vae
from shards.prepare.encode.vae import vae_scale
from shards.prepare.importing.stage import ImportOptions, import_precomputed
from shards.reader import Reader
from shards.storage import Folder
from tests.support import mosaic
from tests.support.datasets import GRIDS, write_dataset
from tests.support.models import tiny_source
from tests.support.precomputed import save_condition, save_latents
from tests.support.runs import lora_blocks, losses, tiny_config, train, trained, write_config

STEPS = 4
SAMPLES = 12


@pytest.fixture(scope="module")
def encoded(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """A dataset of tars as the encoder writes them, with the keys that a folder of .pt files would give."""
    sizes = json.loads((model_folder / "transformer" / "config.json").read_text())
    ratios = vae_scale(load_vae(model_folder, torch.float32))
    return write_dataset(
        tmp_path_factory.mktemp("encoded") / "tar",
        SAMPLES,
        channels=sizes["in_channels"],
        text_width=sizes["caption_channels"],
        references=GRIDS,
        vae=tiny_source(),
        scale=ratios,
        keys=[f"clips__{number}" for number in range(SAMPLES)],
        shard_bytes=16 << 10,
    )


@pytest.fixture(scope="module")
def sources(
    encoded: Dataset, model_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """The same samples in every format, by its name."""
    mosaic.require()
    root = tmp_path_factory.mktemp("formats")
    convert(encoded.root, root / "converted", "mds")
    _stock_shards(encoded, root / "stock")
    _precomputed(encoded, root / "pt")
    import_precomputed(root / "pt", root / "imported", ImportOptions(model=model_folder))
    return {"tar": Path(encoded.root)} | {name: root / name for name in ("converted", "stock", "imported")}


def _stock_shards(encoded: Dataset, out: Path) -> None:
    """Shards by MDSWriter itself, other columns and all, and the manifest from them alone."""
    stored = [one for name in encoded.manifest.shards for one in read_shard(Folder(Path(encoded.root)), name)]
    samples = [
        {"key": one.key, "json": json.loads(one.meta), "safetensors": one.payload, "extra": 7}
        for one in stored
    ]
    columns = COLUMNS | {"json": "json", "extra": "int"}
    mosaic.write(out / "shards", columns, reversed(samples), size_limit=20_000)
    index(out, encoded.info)


def _precomputed(encoded: Dataset, root: Path) -> None:
    with Reader(encoded) as reader:
        for sample in reader.read(range(SAMPLES)):
            media = sample.key.replace("__", "/") + ".mp4"
            save_latents(root / "latents", media, sample.latents, sample.fps)
            save_latents(root / "reference_latents", media, sample.references[0], sample.fps)
            save_condition(root / "conditions", media, sample.prompt_embeds, 12)


@pytest.fixture(scope="module")
def runs(model_folder: Path, sources: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run in LoRA and in IC-LoRA on each source, below one folder."""
    root = tmp_path_factory.mktemp("runs")
    configs = []
    for name, data in sources.items():
        for mode, blocks in (("lora", lora_blocks()), ("ic_lora", lora_blocks(reference=True))):
            blocks = {**blocks, "optimization": {"steps": STEPS, "learning_rate": 0.05}}
            described = tiny_config(model_folder, data, root / f"{mode}_{name}", **blocks)
            configs.append(write_config(root / f"{mode}_{name}.yaml", described))
    train(1, *configs, logs=root / "logs")
    return root


@pytest.mark.parametrize("mode", ["lora", "ic_lora"])
@pytest.mark.parametrize("name", ["converted", "stock", "imported"])
def test_the_losses_are_those_of_the_tars(runs: Path, mode: str, name: str) -> None:
    tars = runs / f"{mode}_tar"
    assert len(losses(tars)) == STEPS
    assert len(set(losses(tars))) == STEPS
    assert losses(runs / f"{mode}_{name}") == losses(tars)
    assert trained(runs / f"{mode}_{name}") == trained(tars)


@pytest.mark.parametrize("name", ["converted", "stock", "imported"])
def test_the_manifests_have_one_fingerprint(encoded: Dataset, sources: dict[str, Path], name: str) -> None:
    """So a run that began on one format may go on with another."""
    assert open_dataset(sources[name]).manifest.fingerprint == encoded.manifest.fingerprint


def test_a_run_on_the_predecessors_folder_says_how_to_import_it(model_folder: Path, tmp_path: Path) -> None:
    for name in ("latents", "conditions"):
        (tmp_path / ".precomputed" / name).mkdir(parents=True)
    config = write_config(
        tmp_path / "run.yaml", tiny_config(model_folder, tmp_path / ".precomputed", tmp_path / "out")
    )
    with pytest.raises(
        InputError, match=r"preprocessed_data_root: .*ltx-shards import .*\.precomputed --out"
    ):
        open_data(load(config))
