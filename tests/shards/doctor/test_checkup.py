from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from shards.dataset.opened import open_dataset
from shards.doctor.checkup import Broken, Records, check_shard
from shards.storage import Folder
from tests.support.damage import cut
from tests.support.scenarios import one_of, sound_dataset

SHARD = "shards/000000.tar"


@pytest.mark.parametrize(
    ("column", "value", "kind", "detail"),
    [
        ("nbytes", -1, "row", "-1 bytes from byte {offset}"),
        ("nbytes", 1 << 60, "cut", "{there} of 1152921504606846976 bytes"),
        ("offset", -1, "row", "{nbytes} bytes from byte -1"),
        ("offset", 1 << 62, "cut", "0 of {nbytes} bytes"),
    ],
)
def test_numbers_that_no_shard_has_take_no_memory(
    tmp_path: Path, column: str, value: int, kind: str, detail: str
) -> None:
    """Row 3 is behind the damage of its shard, so that it is looked for at its own place."""
    dataset = open_dataset(sound_dataset(tmp_path))
    cut(tmp_path, 2)
    manifest = replace(
        dataset.manifest, **{column: one_of(value, 3)(getattr(dataset.manifest, column).copy())}
    )
    rows = np.flatnonzero(manifest.shard == 0).tolist()
    found = check_shard(Folder(tmp_path), SHARD, rows, Records(manifest, dataset.info, ()))
    offset, nbytes = int(dataset.manifest.offset[3]), int(dataset.manifest.nbytes[3])
    there = max(0, (tmp_path / SHARD).stat().st_size - offset)
    said = detail.format(offset=offset, nbytes=nbytes, there=there)
    assert found.broken[-1] == Broken(3, "clips/03", None, kind, said)
    assert [whole.number for whole in found.whole] == [0, 1]
