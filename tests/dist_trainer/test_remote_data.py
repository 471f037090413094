"""Training from an object store is training from the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dist_trainer.build import open_reader
from dist_trainer.config import RunConfig
from dist_trainer.feed.data import open_data
from shards.dataset.opened import Dataset
from shards.errors import InputError
from shards.storage import open_storage
from tests.support.runs import lora_blocks, losses, tiny_config, train, write_config
from tests.support.servers import Fault, proxy

FAULTS = ("reset", "status", "truncate", "corrupt")
STEPS = 5


def test_the_losses_of_a_run_from_a_bucket_are_those_from_the_folder(
    model_folder: Path,
    paired_dataset: Dataset,
    s3: str,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, remote = open_storage(paired_dataset.root), open_storage(f"{bucket}/set")
    for entry in folder.list():
        remote.write(entry.path, folder.read(entry.path))
    steps: dict[str, Any] = {
        **lora_blocks(reference=True),
        "optimization": {"steps": STEPS, "learning_rate": 1e-2},
    }
    far = {"preprocessed_data_root": remote.name}
    data = {
        "folder": {},
        "bucket": far,
        "cached": {**far, "cache_dir": str(tmp_path / "cache"), "cache_gib": 0.001},
    }
    configs = []
    for name, block in data.items():
        described = tiny_config(model_folder, Path(paired_dataset.root), tmp_path / name, data=block, **steps)
        configs.append(write_config(tmp_path / f"{name}.yaml", described))
    with proxy(s3) as front:
        monkeypatch.setenv("AWS_ENDPOINT_URL", front.url)
        front.faults += [Fault(kind, "shards/") for kind in FAULTS]  # type: ignore[arg-type]
        train(1, *configs, logs=tmp_path / "logs")
        assert not any(fault.times for fault in front.faults)
        assert all(request.range for request in front.requests if "shards/" in request.path)
    assert len(losses(tmp_path / "folder")) == STEPS
    assert losses(tmp_path / "bucket") == losses(tmp_path / "cached") == losses(tmp_path / "folder")
    assert list((tmp_path / "cache").rglob("*.sample"))


def configured(root: str, **data: Any) -> RunConfig:
    return RunConfig.model_validate({"data": {"preprocessed_data_root": root, **data}, "lora": {}})


def test_a_url_is_taken_as_it_is_written(bucket: str) -> None:
    root = f"{bucket}/~/my set"
    with pytest.raises(InputError, match=rf"^data\.preprocessed_data_root: {root}/dataset\.json is missing"):
        open_data(configured(root))


def test_a_cache_folder_that_cannot_be_made_is_named(paired_dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    config = configured(str(paired_dataset.root), cache_dir=str(tmp_path / "file" / "cache"))
    with pytest.raises(InputError, match=r"^data\.cache_dir: cache folder .*/file/cache cannot be used"):
        open_reader(config, paired_dataset)
