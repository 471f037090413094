"""Some rows of a manifest, and several manifests end to end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace

import numpy as np
import numpy.typing as npt

from shards.dataset.manifest import Manifest, check_unique


def select(manifest: Manifest, rows: npt.NDArray[np.integer] | npt.NDArray[np.bool_]) -> Manifest:
    """The samples of ``rows`` (numbers or a mask [N]) in that order, with the shards that they are in."""
    chosen = {
        field.name: getattr(manifest, field.name)[rows]
        for field in fields(manifest)
        if field.name != "shards"
    }
    used, first, shard = np.unique(chosen["shard"], return_index=True, return_inverse=True)
    # Shards keep the order in which their samples come, as a manifest made from rows has them.
    order = np.argsort(first, kind="stable")
    place = np.empty(len(used), np.int32)
    place[order] = np.arange(len(used), dtype=np.int32)
    most = int(chosen["references"].any(axis=2).sum(axis=1).max(initial=0))
    chosen |= {"shard": place[shard.reshape(-1)], "references": chosen["references"][:, :most]}
    return Manifest(shards=tuple(manifest.shards[used[index]] for index in order), **chosen)


def join(parts: Sequence[Manifest], check: bool = True) -> Manifest:
    """All samples of several manifests, one after the other; shards of the same name are the same shard.

    Raises InputError when a key is in them twice; without ``check``, never.
    """
    parts = [part for part in parts if len(part)]
    if not parts:
        return Manifest.from_rows([])
    shards = tuple(dict.fromkeys(name for part in parts for name in part.shards))
    number = {name: index for index, name in enumerate(shards)}
    most = max(part.references.shape[1] for part in parts)

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name) for part in parts])

    joined = Manifest(
        shards=shards,
        shard=np.concatenate(
            [np.array([number[name] for name in part.shards], np.int32)[part.shard] for part in parts]
        ),
        references=np.concatenate(
            [
                np.pad(part.references, ((0, 0), (0, most - part.references.shape[1]), (0, 0)))
                for part in parts
            ]
        ),
        **{
            field.name: column(field.name)
            for field in fields(Manifest)
            if field.name not in ("shards", "shard", "references")
        },
    )
    if check:
        check_unique(joined)
    return joined


def by_shard(manifest: Manifest) -> Manifest:
    """The samples in the order of their shards' names; inside a shard, the order they have."""
    order = {name: index for index, name in enumerate(sorted(manifest.shards))}
    rank = np.array([order[name] for name in manifest.shards], np.int64)
    return select(manifest, np.argsort(rank[manifest.shard], kind="stable"))


def renamed(manifest: Manifest, names: Sequence[str]) -> Manifest:
    """The same samples in shards of other names, one for each of ``manifest.shards``."""
    return replace(manifest, shards=tuple(names))
