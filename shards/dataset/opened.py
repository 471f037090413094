"""A dataset opened: ``dataset.json``, ``manifest.parquet`` and ``shards/`` in one folder or below one URL."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from shards.dataset.encoding import check_encoded
from shards.dataset.info import INFO_NAME, DatasetInfo, read_info
from shards.dataset.manifest import MANIFEST_NAME, Manifest, read_manifest
from shards.errors import InputError
from shards.storage import Root, is_url, open_storage


@dataclass(frozen=True, eq=False)
class Dataset:
    """An opened dataset: its folder or URL, its description and the table of its samples."""

    root: Root
    info: DatasetInfo
    manifest: Manifest


def open_dataset(root: Root) -> Dataset:
    """Open the dataset in ``root``, a folder or URL.

    Raises InputError, saying what to do, when the folder is missing, is a predecessor's ``.precomputed``
    folder, lacks its description or its manifest, was written by a newer version, or holds no samples.
    """
    if not is_url(root):
        root = Path(root)
        check_folder(root)
    info = read_info(root)
    manifest = read_manifest(root)
    if not len(manifest):
        raise InputError(f"{root} holds no samples: {MANIFEST_NAME} is empty; encode some clips first")
    return Dataset(root, info, manifest)


def check_folder(root: Path) -> None:
    """Raise InputError, saying what to do, unless a folder holds a dataset or a part of one."""
    if not root.is_dir():
        raise InputError(
            f"dataset folder {root} does not exist; `ltx-shards encode ... --out {root}` makes it"
        )
    described = (root / INFO_NAME).exists() or (root / MANIFEST_NAME).exists()
    for folder in () if described else (root, root / ".precomputed"):
        if (folder / "latents").is_dir() and (folder / "conditions").is_dir():
            raise InputError(
                f"{folder} is a folder of .pt files from LTX-Video-Trainer: turn it into a dataset with "
                f"`ltx-shards import {folder} --out NEW_FOLDER` and give the new folder"
            )
    if not any((root / name).exists() for name in (INFO_NAME, MANIFEST_NAME, "shards")):
        check_encoded(open_storage(root))
        raise InputError(
            f"{root} is not a dataset: it has neither {INFO_NAME} nor shards/; "
            "make one with `ltx-shards encode`"
        )
