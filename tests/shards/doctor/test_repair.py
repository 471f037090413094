from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.dataset.convert import convert
from shards.dataset.index import index
from shards.dataset.left_out import LEFT_OUT_NAME, LeftOut, read_left_out, write_left_out
from shards.dataset.manifest import MANIFEST_NAME
from shards.dataset.opened import open_dataset
from shards.doctor.diagnose import diagnose
from shards.doctor.finding import KINDS
from shards.doctor.repair import BEFORE_REPAIR, repair
from shards.errors import InputError, ShardError
from shards.formats.sample import Sample
from shards.reader import Reader
from shards.storage import open_storage
from tests.support import mosaic
from tests.support.damage import cut, flip, shard_of
from tests.support.scenarios import SAMPLES, SCENARIOS, sound_dataset, without_rows

MENDABLE = [name for name, scenario in SCENARIOS.items() if scenario.mendable]


def contents(root: Path) -> dict[str, bytes]:
    return {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def read_all(root: Path) -> dict[str, Sample]:
    dataset = open_dataset(root)
    with Reader(dataset, threads=1) as reader:
        return {sample.key: sample for sample in reader.read(range(len(dataset.manifest)))}


@pytest.mark.parametrize("name", MENDABLE)
def test_a_repair_makes_it_sound_and_keeps_what_is_whole(tmp_path: Path, name: str) -> None:
    scenario = SCENARIOS[name]
    root = sound_dataset(tmp_path / "data")
    keys = open_dataset(root).manifest.keys.tolist()
    scenario.spoil(root)
    before = contents(root)
    lines = repair(diagnose(root, threads=2))

    again = diagnose(root, threads=2)
    assert again.sound
    assert again.changes.lines() == []
    kept = {key for row, key in enumerate(keys) if row not in scenario.lost}
    assert set(read_all(root)) == kept | scenario.gained
    # Without a checksum an entry is of whatever has the name.
    manifest, listed = open_dataset(root).manifest, read_left_out(open_storage(root))
    trained = {
        (manifest.shards[shard], key) for shard, key in zip(manifest.shard, manifest.keys, strict=True)
    }
    assert not trained & {(entry.shard, entry.key) for entry in listed if not entry.checksum}
    after = contents(root)
    assert {path for path in before if before[path] != after[path]} <= {MANIFEST_NAME}
    assert set(after) - set(before) <= {LEFT_OUT_NAME, BEFORE_REPAIR, MANIFEST_NAME}
    if lines and MANIFEST_NAME in before:
        assert after[BEFORE_REPAIR] == before[MANIFEST_NAME]
    assert bool(lines) == (after != before)


@pytest.mark.parametrize("name", MENDABLE)
def test_the_same_damage_is_repaired_the_same_way(tmp_path: Path, name: str) -> None:
    SCENARIOS[name].spoil(sound_dataset(tmp_path / "data"))
    shutil.copytree(tmp_path / "data", tmp_path / "twin")
    lines = [
        repair(diagnose(tmp_path / folder, threads=threads)) for folder, threads in (("data", 1), ("twin", 3))
    ]
    assert lines[0] == lines[1]
    assert contents(tmp_path / "data") == contents(tmp_path / "twin")


@settings(max_examples=20, deadline=None)
@given(
    flipped=st.sets(st.integers(0, SAMPLES - 1), max_size=5) | st.just(set(range(4))),
    cut_at=st.none() | st.integers(0, SAMPLES - 1),
    unknown=st.sets(st.integers(0, SAMPLES - 1), max_size=4),
)
def test_any_damage_leaves_only_samples_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, flipped: set[int], cut_at: int | None, unknown: set[int]
) -> None:
    root = sound_dataset(tmp_path_factory.mktemp("damaged") / "data")
    manifest, written = open_dataset(root).manifest, read_all(root)
    for row in flipped - unknown:
        flip(root, row)
    if cut_at is not None:
        cut(root, cut_at)
    without_rows(root, *unknown)
    broken = flipped - unknown
    if cut_at is not None:
        broken |= {row for row in range(cut_at, SAMPLES) if manifest.shard[row] == manifest.shard[cut_at]}
    if broken == set(range(SAMPLES)):
        return
    repair(diagnose(root, threads=1))
    assert diagnose(root, threads=1).sound
    kept = read_all(root)
    assert set(kept) == {str(manifest.keys[row]) for row in set(range(SAMPLES)) - broken}
    for key, sample in kept.items():
        assert torch.equal(sample.latents, written[key].latents)
        assert torch.equal(sample.prompt_embeds, written[key].prompt_embeds)


@pytest.fixture(scope="module", params=["tar", "mds"])
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound dataset in either format, to copy."""
    root = sound_dataset(tmp_path_factory.mktemp("written") / "tar")
    if request.param == "mds":
        mosaic.require()
        convert(root, root.parent / "mds", "mds")
    return root.parent / request.param


@settings(max_examples=60, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1), st.integers(0, 7)), max_size=3),
    cuts=st.lists(st.tuples(st.integers(0, 2), st.floats(0, 1)), max_size=1),
)
def test_bits_flipped_anywhere_end_no_round_and_are_never_taken_for_good(
    written: Path,
    tmp_path_factory: pytest.TempPathFactory,
    flips: list[tuple[int, float, int]],
    cuts: list[tuple[int, float]],
) -> None:
    root = Path(shutil.copytree(written, tmp_path_factory.mktemp("spoiled") / "data"))
    known = set(open_dataset(root).manifest.checksum.tolist())
    shards = sorted(path for path in (root / "shards").iterdir() if path.suffix in (".tar", ".mds"))
    for number, place, bit in flips:
        data = bytearray(shards[number].read_bytes())
        data[int(place * (len(data) - 1))] ^= 1 << bit
        shards[number].write_bytes(data)
    for number, place in cuts:
        data = bytearray(shards[number].read_bytes())
        shards[number].write_bytes(data[: int(place * len(data))])
    diagnosis = diagnose(root, threads=1)
    assert set(diagnosis.mended.checksum.tolist()) <= known
    if diagnosis.findings.of("unreadable").count or not len(diagnosis.mended):
        return
    repair(diagnosis)
    assert diagnose(root, threads=1).sound
    read_all(root)


WARNED = [
    name
    for name, scenario in SCENARIOS.items()
    if all(KINDS[kind].severity == "warning" for kind in scenario.found)
]


@pytest.mark.parametrize("name", [None, *WARNED])
def test_a_sound_dataset_is_left_alone(tmp_path: Path, name: str | None) -> None:
    root = sound_dataset(tmp_path / "data")
    if name:
        SCENARIOS[name].spoil(root)
    before = contents(root)
    assert repair(diagnose(root)) == []
    assert contents(root) == before


def test_what_was_done_is_said_line_by_line(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path)
    without_rows(root, 9)
    flip(root, 2)
    lines = repair(diagnose(root))
    assert lines[0].startswith(
        "dropped 'clips/02' of shards/000000.tar: the bytes are not those of the manifest's"
    )
    assert lines[1:] == [
        "added 1 sample of shards/000002.tar",
        f"{LEFT_OUT_NAME} keeps 1 sample that the shards still hold out of the next index",
        f"kept the manifest as it was in {BEFORE_REPAIR}",
        f"wrote {MANIFEST_NAME}: 11 samples, 11 before",
    ]


def test_the_manifests_of_all_repairs_are_kept(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path)
    manifests = []
    for row in (1, 5):
        manifests.append((root / MANIFEST_NAME).read_bytes())
        flip(root, row)
        repair(diagnose(root))
    assert (root / BEFORE_REPAIR).read_bytes() == manifests[0]
    assert (root / f"{BEFORE_REPAIR}-2").read_bytes() == manifests[1]


def test_an_index_does_not_bring_back_what_a_repair_left_out(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path)
    flip(root, 1)
    repair(diagnose(root))
    repaired = (root / MANIFEST_NAME).read_bytes()
    index(root)
    assert (root / MANIFEST_NAME).read_bytes() == repaired


def test_a_whole_copy_of_a_sample_left_out_comes_back(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path)
    shard = shard_of(root, 1)
    whole, written = shard.read_bytes(), (root / MANIFEST_NAME).read_bytes()
    flip(root, 1)
    repair(diagnose(root))
    shard.write_bytes(whole)
    assert not diagnose(root).sound
    index(root)
    assert (root / MANIFEST_NAME).read_bytes() == written


def test_nothing_is_repaired_while_the_disk_fails(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path)
    SCENARIOS["a disk that fails"].spoil(root)
    before = (root / MANIFEST_NAME).read_bytes()
    with pytest.raises(InputError, match="could not be read; nothing is repaired before the storage works"):
        repair(diagnose(root))
    assert (root / MANIFEST_NAME).read_bytes() == before


def test_a_manifest_is_never_emptied(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path)
    SCENARIOS["a null embedding of another width"].spoil(root)
    with pytest.raises(InputError) as caught:
        repair(diagnose(root))
    assert str(caught.value) == f"{root}: no sample would be left; manifest.parquet stays as it is"
    assert len(open_dataset(root).manifest) == SAMPLES


def test_bytes_that_differ_everywhere_are_taken_by_an_index_alone(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path / "data")
    SCENARIOS["a manifest of other bytes"].spoil(root)
    with pytest.raises(InputError) as caught:
        repair(diagnose(root))
    assert str(caught.value) == (
        f"{root}: no sample would be left; manifest.parquet stays as it is; if shards were written again, "
        f"`ltx-shards index {root}` takes them as they are"
    )
    index(root)
    assert diagnose(root).sound


def test_a_damaged_shard_stops_the_index_and_names_the_repair(tmp_path: Path) -> None:
    root = sound_dataset(tmp_path)
    cut(root, 2)
    with pytest.raises(ShardError, match="bytes of a member"):
        index(root)


def test_the_list_of_left_out_samples_survives_the_file(tmp_path: Path) -> None:
    storage = open_storage(tmp_path)
    entries = [LeftOut("shards/0.tar", "a/ä", "00ff", "why"), LeftOut("shards/1.tar", "b", "", "no\nreason")]
    write_left_out(storage, [*entries, entries[0]])
    assert read_left_out(storage) == entries
    write_left_out(storage, [])
    assert not (tmp_path / LEFT_OUT_NAME).exists()
    (tmp_path / LEFT_OUT_NAME).write_text("{}")
    with pytest.raises(InputError, match=r"left_out.jsonl is not a list of left-out samples.*remove it"):
        read_left_out(storage)
