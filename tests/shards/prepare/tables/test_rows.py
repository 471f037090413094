from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import InputError
from shards.prepare.tables.rows import read_rows, split_cell, table_bytes, write_rows

SUFFIXES = (".csv", ".json", ".jsonl")
COLUMNS = st.sampled_from(["caption", "media_path", "Größe", 'a "b"', "c,d", "e\nf", ";"])
TEXT = st.text(st.characters(codec="utf-8"), max_size=8)


@given(st.lists(st.dictionaries(COLUMNS, TEXT, min_size=1), min_size=1, max_size=4))
@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_json_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, suffix: str, rows: list[dict]
) -> None:
    path = tmp_path_factory.getbasetemp() / f"back{suffix}"
    write_rows(path, rows)
    assert read_rows(path) == rows


@given(st.lists(st.tuples(TEXT, TEXT, TEXT), min_size=1, max_size=4))
def test_csv_of_text_comes_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, str, str]]
) -> None:
    rows = [dict(zip(("caption", "media_path", "c,\n d"), row, strict=True)) for row in cells]
    path = tmp_path_factory.getbasetemp() / "back.csv"
    write_rows(path, rows)
    assert read_rows(path) == rows


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_columns_come_in_the_order_first_seen_and_rows_may_lack_some(tmp_path: Path, suffix: str) -> None:
    rows = [{"caption": "x", "media_path": "a.mp4"}, {"media_path": "b.mp4", "note": "n"}]
    write_rows(tmp_path / f"t{suffix}", rows)
    back = read_rows(tmp_path / f"t{suffix}")
    assert [{name: value for name, value in row.items() if value} for row in back] == rows
    assert list(dict.fromkeys(name for row in back for name in row)) == ["caption", "media_path", "note"]


def test_a_csv_cell_holds_several_texts_joined_and_other_values_as_json(tmp_path: Path) -> None:
    row = {"references": ["a.mp4", "b.mp4"], "none": None, "size": 3, "more": {"a": [1]}}
    write_rows(tmp_path / "t.csv", [row])
    assert read_rows(tmp_path / "t.csv") == [
        {"references": "a.mp4;b.mp4", "none": "", "size": "3", "more": '{"a": [1]}'}
    ]


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    write_rows(tmp_path / "t.csv", [{"caption": "x" * 200_000}])
    assert len(read_rows(tmp_path / "t.csv")[0]["caption"]) == 200_000


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_a_table_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"t{suffix}"
    write_rows(path, [{"caption": "old"}])
    before = path.read_bytes()
    with pytest.raises(InputError, match="is not text that UTF-8 can hold"):
        write_rows(path, [{"caption": "\udcff.mp4"}])
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "", "unknown kind of dataset file. Give a .csv, .json or .jsonl file."),
        ("t.csv", "a,b\n1,2,3\n", "row 1: more cells than columns (['3'] left over)."),
        ("t.csv", "a,b,a\n1,2,3\n", "the column 'a' is there twice. Rename or remove one."),
        ("t.json", '{"a": 1}', "holds a dict, expected a list of objects, one per clip."),
        ("t.json", '["a"]', "row 1: holds a str, expected an object with named columns."),
        ("t.jsonl", '{"a": 1}\n\n{', "line 3: not valid JSON (Expecting property name enclosed"),
        ("t.json", "[" * 100_000, "not valid JSON (maximum recursion depth"),
        (
            "t.jsonl",
            '{"caption": "x"}\n{"caption": "a \\ud83d b"}',
            r"line 2: column 'caption' holds half a character, which was cut: 'a \ud83d b'. Correct it.",
        ),
        ("t.json", r'[{"a": ["b", "\udcff"]}]', "row 1: column 'a' holds half a character, which was cut: ["),
    ],
)
def test_what_is_no_table_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError) as error:
        read_rows(tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path / name}: {message}")


@pytest.mark.parametrize(
    ("name", "cell", "parts"),
    [
        ("t.csv", " a ;b", ["a", "b"]),
        ("t.json", "a;b", ["a;b"]),
        ("t.jsonl", ["a", " b "], ["a", "b"]),
        ("t.csv", "a;;b", ["a", "", "b"]),
        ("t.csv", " ; ", []),
        ("t.json", None, []),
        ("t.json", [], []),
        ("t.json", 3, None),
        ("t.json", ["a", 3], None),
    ],
)
def test_a_cell_holds_one_text_or_several(name: str, cell: object, parts: list[str] | None) -> None:
    assert split_cell(Path(name), cell) == parts


def test_a_table_has_a_known_kind() -> None:
    with pytest.raises(
        InputError, match=r"out.txt: unknown kind of dataset file. Name it .csv, .json or .jsonl."
    ):
        table_bytes(Path("out.txt"), [])
    assert json.loads(table_bytes(Path("OUT.JSON"), [])) == []
