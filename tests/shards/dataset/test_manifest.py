from __future__ import annotations

from pathlib import Path
from unittest.mock import patch as patched

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.dataset.manifest import MANIFEST_NAME, Manifest, read_manifest, write_manifest
from shards.errors import InputError
from shards.formats.row import Row
from shards.formats.text import key_fault
from shards.geometry import Grid, Patch
from shards.hashing import sample_id

sizes = st.integers(1, 40)
grids = st.builds(Grid, sizes, sizes, sizes)


def rows_of(keys: list[str], draw: st.DataObject) -> list[Row]:
    return [
        Row(
            key=key,
            shard=f"shards/{draw.draw(st.integers(0, 3)):06d}.tar",
            offset=draw.draw(st.integers(0, 2**40)),
            nbytes=draw.draw(st.integers(1, 2**31 - 1)),
            checksum=draw.draw(st.integers(0, 2**64 - 1)),
            grid=draw.draw(grids),
            text_tokens=draw.draw(st.integers(0, 256)),
            fps=draw.draw(st.floats(1, 120)),
            channels=4,
            text_width=16,
            references=tuple(draw.draw(st.lists(grids, max_size=3))),
        )
        for key in keys
    ]


def row(name: str, **changes: object) -> Row:
    base = Row(name, "shards/000000.tar", 512, 100, 7, Grid(2, 4, 6), 3, 24.0, 4, 16)
    return base._replace(**changes)


any_keys = st.lists(
    st.text("abcé/_.", min_size=1, max_size=8).filter(lambda key: not key_fault(key)),
    min_size=1,
    max_size=12,
    unique=True,
)
columns = ("keys", "ids", "shard", "offset", "nbytes", "checksum", "grid", "references", "text_tokens", "fps")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40, deadline=None)
@given(any_keys, st.data())
def test_what_is_written_is_read(tmp_path: Path, keys: list[str], data: st.DataObject) -> None:
    manifest = Manifest.from_rows(rows_of(keys, data))
    write_manifest(tmp_path, manifest)
    found = read_manifest(tmp_path)
    assert found.shards == manifest.shards
    assert found.fingerprint == manifest.fingerprint
    for name in columns:
        expected = getattr(manifest, name)
        assert getattr(found, name).dtype == expected.dtype
        assert np.array_equal(getattr(found, name), expected)
    first = (tmp_path / MANIFEST_NAME).read_bytes()
    write_manifest(tmp_path, found)
    assert (tmp_path / MANIFEST_NAME).read_bytes() == first


@settings(max_examples=40, deadline=None)
@given(any_keys, st.data())
def test_fingerprint_ignores_order_and_place(keys: list[str], data: st.DataObject) -> None:
    rows = rows_of(keys, data)
    moved = [row._replace(shard="shards/000099.tar", offset=0) for row in data.draw(st.permutations(rows))]
    assert Manifest.from_rows(moved).fingerprint == Manifest.from_rows(rows).fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"key": "other"},
        {"checksum": 8},
        {"grid": Grid(2, 6, 4)},
        {"references": (Grid(2, 4, 6),)},
        {"references": (Grid(2, 4, 6), Grid(1, 4, 6))},
        {"text_tokens": 4},
        {"fps": 25.0},
    ],
    ids=lambda change: next(iter(change)),
)
def test_fingerprint_depends_on_what_is_trained(change: dict[str, object]) -> None:
    same = row("b")
    assert (
        Manifest.from_rows([same, row("a", **change)]).fingerprint
        != Manifest.from_rows([same, row("a")]).fingerprint
    )


def test_tokens_count_target_and_reference() -> None:
    manifest = Manifest.from_rows([row("a"), row("b", references=(Grid(2, 2, 2),))])
    assert manifest.target_tokens().tolist() == [48, 48]
    assert manifest.tokens().tolist() == [48, 56]
    assert manifest.tokens(Patch(2, 2)).tolist() == [6, 7]
    assert manifest.tokens().dtype == np.int64


def test_a_sample_the_patch_does_not_divide_is_named() -> None:
    manifest = Manifest.from_rows([row("fits"), row("odd", grid=Grid(2, 4, 5))])
    with pytest.raises(InputError, match=r"'odd'.*\(2, 4, 5\)"):
        manifest.tokens(Patch(1, 2))


def test_ids_are_the_hashes_of_the_keys() -> None:
    assert Manifest.from_rows([row("a"), row("b")]).ids.tolist() == [sample_id("a"), sample_id("b")]


def test_a_repeated_key_is_refused_with_both_shards() -> None:
    with pytest.raises(InputError, match=r"'a' appears twice, in shards/000000.tar and shards/000001.tar"):
        Manifest.from_rows([row("a"), row("b"), row("a", shard="shards/000001.tar")])


def test_two_keys_with_one_id_are_refused() -> None:
    with (
        patched("shards.dataset.manifest.sample_id", return_value=5),
        pytest.raises(InputError, match=r"'a' and 'b'.*one id"),
    ):
        Manifest.from_rows([row("a"), row("b")])


@pytest.mark.parametrize("name", ["channels", "text_width"])
def test_samples_of_two_models_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"'b' has {name} 99"):
        Manifest.from_rows([row("a"), row("b", **{name: 99})])


def test_an_empty_manifest_round_trips(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest.from_rows([]))
    assert len(read_manifest(tmp_path)) == 0


def test_a_missing_manifest_says_how_to_rebuild_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is missing.*ltx-shards index"):
        read_manifest(tmp_path)


def test_a_damaged_manifest_says_how_to_rebuild_it(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest.from_rows([row("a")]))
    path = tmp_path / MANIFEST_NAME
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match=r"not a readable manifest.*ltx-shards index"):
        read_manifest(tmp_path)


def test_a_manifest_without_a_column_says_how_to_rebuild_it(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest.from_rows([row("a")]))
    path = tmp_path / MANIFEST_NAME
    pq.write_table(pq.read_table(path).drop_columns(["checksum"]), path)
    with pytest.raises(InputError, match=r"checksum.*ltx-shards index"):
        read_manifest(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"offset": -512}, "row 1, sample 'b': offset is -512"),
        ({"nbytes": -1}, "row 1, sample 'b': nbytes is -1"),
        ({"nbytes": 2**40}, "row 1, sample 'b': nbytes is 1099511627776"),
        ({"grid": Grid(0, 4, 6)}, "row 1, sample 'b': frames is 0"),
        ({"grid": Grid(2, -4, 6)}, "row 1, sample 'b': height is -4"),
        ({"text_tokens": -3}, "row 1, sample 'b': text_tokens is -3"),
        ({"fps": 0.0}, "row 1, sample 'b': fps is 0.0"),
        ({"fps": float("nan")}, "row 1, sample 'b': fps is nan"),
        ({"fps": float("inf")}, "row 1, sample 'b': fps is inf"),
        ({"key": "../b"}, "row 1: key '../b' leads out of its folder"),
        ({"key": "/b"}, "row 1: key '/b' leads out of its folder"),
        ({"key": "x/.."}, "row 1: key 'x/..' leads out of its folder"),
        ({"key": ""}, "row 1: key '' is not a file's name"),
        ({"key": "b\0"}, "row 1: key 'b\\x00' is not a file's name"),
    ],
)
def test_a_value_that_no_sample_has_is_named_with_its_row(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    write_manifest(tmp_path, Manifest.from_rows([row("a"), row("b", **change), row("..c")], check=False))
    with pytest.raises(InputError) as error:
        read_manifest(tmp_path)
    path = tmp_path / MANIFEST_NAME
    assert str(error.value) == f"{path}: {message}: rebuild it with `ltx-shards index {tmp_path}`"


@pytest.mark.parametrize("name", ["../x.tar", "/etc/passwd", ""])
def test_a_shard_outside_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    write_manifest(tmp_path, Manifest.from_rows([row("a", shard=name)]))
    with pytest.raises(InputError, match=f"outside the dataset's folder: {name}: rebuild it with"):
        read_manifest(tmp_path)


def test_references_without_a_size_are_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest.from_rows([row("a", references=(Grid(2, 0, 6),))]))
    with pytest.raises(InputError, match=r"sides below 1\): rebuild it with"):
        read_manifest(tmp_path)


def test_text_that_is_none_is_refused(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest.from_rows([row("a")]))
    table = pq.read_table(tmp_path / MANIFEST_NAME)
    bad = pa.array([b"a\xff"]).view(pa.string())
    pq.write_table(
        table.set_column(table.schema.get_field_index("key"), "key", bad), tmp_path / MANIFEST_NAME
    )
    with pytest.raises(InputError, match=r"not a readable manifest.*ltx-shards index"):
        read_manifest(tmp_path)


def test_a_failed_write_keeps_the_old_manifest(tmp_path: Path) -> None:
    write_manifest(tmp_path, Manifest.from_rows([row("a")]))
    with (
        patched("shards.dataset.manifest.pq.write_table", side_effect=OSError("No space left")),
        pytest.raises(OSError),
    ):
        write_manifest(tmp_path, Manifest.from_rows([row("b")]))
    assert read_manifest(tmp_path).keys.tolist() == ["a"]
    assert [path.name for path in tmp_path.iterdir()] == [MANIFEST_NAME]
