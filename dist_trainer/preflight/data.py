"""The dataset as this host sees it: its tables, and one sample read from its shard."""

from __future__ import annotations

from typing import Any

from dist_trainer.config import RunConfig
from dist_trainer.feed.data import open_data
from shards.errors import DamagedSample
from shards.reader import Reader

_ROW = 0


def try_data(config: RunConfig) -> dict[str, Any]:
    """Open the dataset and read a sample, past any cache.

    Returns the fingerprint of the manifest, and the damage of that sample, empty where its checksum is right: a run
    replaces samples that are damaged, so that is wrong only where other hosts read it well. Raises InputError for a
    dataset that cannot be opened, ShardError for a shard that cannot be read.
    """
    dataset = open_data(config)
    damage = ""
    with Reader(dataset, threads=1) as reader:
        try:
            reader.read([_ROW])
        except DamagedSample as error:
            damage = str(error)
    return {"fingerprint": dataset.manifest.fingerprint, "damage": damage}
