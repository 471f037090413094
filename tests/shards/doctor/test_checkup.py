from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shards.dataset.info import read_info
from shards.dataset.manifest import Manifest
from shards.dataset.opened import open_dataset
from shards.doctor import checkup
from shards.doctor.checkup import Broken, Checkup, Records, check_shard
from shards.storage import Folder
from tests.support.damage import cut
from tests.support.scenarios import one_of, sound_dataset

SHARD = "shards/000000.tar"


def checked(root: Path, manifest: Manifest) -> Checkup:
    """The checks of the first shard."""
    rows = np.flatnonzero(manifest.shard == 0).tolist()
    return check_shard(Folder(root), SHARD, rows, Records(manifest, read_info(root), ()))


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
    found = checked(tmp_path, manifest)
    offset, nbytes = int(dataset.manifest.offset[3]), int(dataset.manifest.nbytes[3])
    there = max(0, (tmp_path / SHARD).stat().st_size - offset)
    said = detail.format(offset=offset, nbytes=nbytes, there=there)
    assert found.broken[-1] == Broken(3, "clips/03", None, kind, said)
    assert [whole.number for whole in found.whole] == [0, 1]


def test_a_sample_that_no_check_has_thought_of_is_a_finding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_dataset(sound_dataset(tmp_path)).manifest
    examine = checkup.examine

    def odd(shard: str, stored: Any, *others: Any) -> Any:
        if stored.key == "clips/02":
            raise RuntimeError("odd\nvery")
        return examine(shard, stored, *others)

    monkeypatch.setattr(checkup, "examine", odd)
    found = checked(tmp_path, manifest)
    checksum = int(manifest.checksum[2])
    assert found.broken == [Broken(2, "clips/02", checksum, "tensors", "RuntimeError: odd")]
    assert [whole.number for whole in found.whole] == [0, 1, 3]


def test_a_shard_that_cannot_be_walked_is_read_at_the_places_of_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = open_dataset(sound_dataset(tmp_path)).manifest

    def odd(*_: Any) -> Any:
        raise KeyError("odd")

    monkeypatch.setattr(checkup, "walk", odd)
    found = checked(tmp_path, manifest)
    assert found.problems == [("unreadable", "", "KeyError: 'odd'")]
    assert [whole.number for whole in found.whole] == [0, 1, 2, 3]
