"""Rebuild a dataset's manifest from its tars alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from shards.dataset import DatasetInfo, read_info, write_info
from shards.errors import InputError
from shards.manifest import Manifest, Row, write_manifest
from shards.storage import Root, open_storage
from shards.tar import SHARDS, scan_shard


def index(
    root: Root,
    info: DatasetInfo | None = None,
    *,
    threads: int | None = None,
    on_shard: Callable[[str, int], None] = lambda shard, total: None,
) -> Manifest:
    """Scan ``root/shards/*.tar`` and write ``root/manifest.parquet``: the same bytes the writer made.

    Reads and hashes every payload, so it is also a full check of the data. Tars written by others are taken
    when they hold the same two members a sample; ``info`` then supplies the ``dataset.json`` they lack.
    ``threads`` defaults to the CPU count; ``on_shard(path, total)`` is called after each shard.

    Raises InputError when there are no tars, ``dataset.json`` is missing and no ``info`` is given, a key
    appears twice or the widths of the samples do not agree; ShardError for a damaged tar.
    """
    storage = open_storage(root)
    names = [entry.path for entry in storage.list(SHARDS) if entry.path.endswith(".tar")]
    if not names:
        raise InputError(f"{root}/{SHARDS} holds no .tar file: give the folder that contains {SHARDS}/")
    described = read_info(root) if info is None else info
    rows: list[Row] = []
    with ThreadPoolExecutor(threads or os.cpu_count(), thread_name_prefix="index") as pool:
        for name, found in zip(names, pool.map(partial(scan_shard, storage), names), strict=True):
            rows += found
            on_shard(name, len(names))
    manifest = Manifest.from_rows(rows)
    _check_widths(root, described, rows)
    if info is not None:
        write_info(root, info)
    write_manifest(root, manifest)
    return manifest


def _check_widths(root: Root, info: DatasetInfo, rows: list[Row]) -> None:
    for name in ("channels", "text_width"):
        if rows and getattr(rows[0], name) != getattr(info, name):
            raise InputError(
                f"{root}: dataset.json says {name} {getattr(info, name)}, the shards hold "
                f"{getattr(rows[0], name)}: it belongs to another model"
            )
