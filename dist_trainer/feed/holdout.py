"""Which samples a run never trains, so that its loss on them tells what it has learned. Imports without torch.

A sample is held out where a hash of its id and the run's seed falls below the share: the same samples for any number of
ranks, any order of the manifest, and when samples are added to the dataset.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from shards.dataset.manifest import Manifest
from shards.dataset.opened import Dataset
from shards.dataset.selection import select
from shards.errors import InputError
from shards.hashing import mix, unit

# Keep the uses apart from each other, from the noise of heldout.py, and from the streams that flow.py and substitute.py
# draw.
_SPLIT, _CHOICE = 201, 202


def split(dataset: Dataset, seed: int, share: float) -> tuple[Dataset, Dataset]:
    """The part of a dataset to train, and the `share` in (0, 1) of it that is held out.

    Raises InputError where one of them has no sample.
    """
    held = unit(mix(_SPLIT, seed, dataset.manifest.ids)) < share
    for part, lacks in ((held, "holds none out"), (~held, "leaves none to train")):
        if not part.any():
            raise InputError(
                f"validation.holdout: {share:g} of the {len(held)} samples of {dataset.root} {lacks}; choose another "
                "share, or name another dataset in validation.holdout_data"
            )
    return _part(dataset, ~held), _part(dataset, held)


def check_apart(training: Dataset, heldout: Dataset) -> None:
    """Raise InputError where a sample of `heldout` is among those to train, told by its bytes, or where the two come
    from other encoders.
    """
    parts = (training, heldout)
    facts = {
        f"{name}'s {fact}": [getattr(getattr(part.info, name), fact) for part in parts]
        for name in ("vae", "text_encoder")
        for fact in ("kind", "fingerprint")
    }
    facts["vae's compression (time, side)"] = [tuple(part.info.scale) for part in parts]
    for name, (ours, theirs) in facts.items():
        if ours and theirs and ours != theirs:
            raise InputError(
                f"validation.holdout_data: {heldout.root}: its {name} is {theirs}, that of {training.root} is {ours}; "
                "encode both with the same models"
            )
    common = np.isin(heldout.manifest.checksum, training.manifest.checksum)
    if common.any():
        keys = heldout.manifest.keys[common]
        raise InputError(
            f"validation.holdout_data: {heldout.root}: {len(keys)} of its {len(common)} samples are also in "
            f"{training.root}, which is trained ({', '.join(map(str, keys[:5]))}); take them out of one of the two"
        )


def chosen(dataset: Dataset, seed: int, most: int) -> Dataset:
    """At most `most` of a dataset's samples, those of the least hashes, in the order of these."""
    keys = mix(_CHOICE, seed, dataset.manifest.ids)
    return _part(dataset, np.argsort(keys, kind="stable")[:most])


def partners(manifest: Manifest) -> np.ndarray:
    """For each row, another one whose references are of the same sizes: int64 [N], -1 where there is none.

    Rows of the same sizes pass their references round in a ring, in the order of the rows.
    """
    found = np.full(len(manifest), -1, np.int64)
    _, group = np.unique(manifest.references.reshape(len(manifest), -1), axis=0, return_inverse=True)
    for number in np.unique(group):
        rows = np.flatnonzero(group == number)
        if len(rows) > 1:
            found[rows] = np.roll(rows, 1)
    return found


def _part(dataset: Dataset, rows: np.ndarray) -> Dataset:
    return replace(dataset, manifest=select(dataset.manifest, rows))
