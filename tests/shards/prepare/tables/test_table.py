from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import InputError
from shards.formats.row import check_key
from shards.prepare.tables.table import check_media, digest, read_table, sample_keys

ENTRIES = [
    {"caption": "a cat, walking", "media_path": "clips/a.mp4", "reference_path": "edges/a.mp4"},
    {"caption": "ein Hund läuft", "media_path": "b.v1.mp4", "reference_path": ""},
    {"caption": 'a "quoted" bird', "media_path": "b.v2.mp4", "reference_path": ""},
]


def write_table(path: Path, entries: list[dict]) -> Path:
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".csv":
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(entries[0]))
            writer.writeheader()
            writer.writerows(entries)
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(entry) for entry in entries) + "\n\n", encoding="utf-8")
    else:
        path.write_text(json.dumps(entries, ensure_ascii=False), encoding="utf-8")
    for entry in entries:
        for column in ("media_path", "reference_path"):
            if isinstance(entry.get(column), str) and entry[column]:
                (path.parent / entry[column]).parent.mkdir(parents=True, exist_ok=True)
                (path.parent / entry[column]).touch()
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.json", "t.jsonl", "T.JSON"])
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    rows = read_table(write_table(tmp_path / name, ENTRIES))
    assert [row.caption for row in rows] == [entry["caption"] for entry in ENTRIES]
    assert [row.key for row in rows] == ["clips__a_mp4", "b_v1_mp4", "b_v2_mp4"]
    assert [row.source for row in rows] == [entry["media_path"] for entry in ENTRIES]
    assert rows[0].media == tmp_path / "clips/a.mp4"
    assert [row.references for row in rows] == [(tmp_path / "edges/a.mp4",), (), ()]
    check_media(tmp_path / name, rows)


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    write_table(tmp_path / "media.json", ENTRIES)
    table = tmp_path / "t.json"
    table.write_text(json.dumps([{"text": "x", "video": "clips/a.mp4", "depth": "edges/a.mp4"}]))
    (row,) = read_table(table, caption="text", media="video", reference="depth")
    assert (row.caption, row.media.name, row.references) == ("x", "a.mp4", (tmp_path / "edges/a.mp4",))


def test_paths_may_lead_out_of_the_folder_and_be_absolute(tmp_path: Path) -> None:
    """Tables are the user's own: footage is often elsewhere, and a table written elsewhere leads back to it."""
    (tmp_path / "tables").mkdir()
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).touch()
    table = tmp_path / "tables" / "t.json"
    entry = {"caption": "x", "media_path": "../a.mp4", "reference_path": str(tmp_path / "b.mp4")}
    table.write_text(json.dumps([entry]))
    (row,) = read_table(table)
    check_media(table, [row])
    assert row.media.samefile(tmp_path / "a.mp4")
    assert row.references == (tmp_path / "b.mp4",)


def test_references_are_optional_under_their_usual_name_only(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.json", [{"caption": "x", "media_path": "a.mp4"}])
    assert read_table(table)[0].references == ()
    with pytest.raises(InputError, match="row 1: no column 'depth'"):
        read_table(table, reference="depth")
    assert read_table(write_table(tmp_path / "u.json", ENTRIES), reference=None)[0].references == ()


@pytest.mark.parametrize(
    ("name", "cells", "column", "expected"),
    [
        ("t.csv", {"reference_path": "d.mp4; e.mp4"}, "reference_path", ["d.mp4", "e.mp4"]),
        ("t.json", {"reference_path": ["d.mp4", "e.mp4"]}, "reference_path", ["d.mp4", "e.mp4"]),
        ("t.jsonl", {"reference_path": "d;e.mp4"}, "reference_path", ["d;e.mp4"]),
        ("t.json", {"depth": "d.mp4", "edges": "e.mp4"}, "edges, depth", ["e.mp4", "d.mp4"]),
        ("t.csv", {"depth": "d.mp4;f.mp4", "edges": "e.mp4"}, "depth,edges", ["d.mp4", "f.mp4", "e.mp4"]),
        ("t.csv", {"depth": "", "edges": ""}, "depth,edges", []),
        ("t.json", {"depth": None, "edges": []}, "depth,edges", []),
    ],
)
def test_a_row_may_have_several_references(
    tmp_path: Path, name: str, cells: dict, column: str, expected: list[str]
) -> None:
    table = write_table(tmp_path / name, [{"caption": "x", "media_path": "a.mp4", **cells}])
    assert read_table(table, reference=column)[0].references == tuple(tmp_path / path for path in expected)


GOOD = '{"caption": "x", "media_path": "a.mp4"}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.txt", "", "unknown kind"),
        ("t.json", "[", "not valid JSON"),
        ("t.json", "{}", "expected a list"),
        ("t.json", "[]", "no rows"),
        ("t.json", "[[]]", "row 1: holds a list"),
        (
            "t.json",
            f'[{GOOD}, {{"media_path": "a.mp4"}}]',
            r"row 2: no column 'caption' \(there are: 'media_path'",
        ),
        ("t.json", '[{"caption": null, "media_path": "a.mp4"}]', "row 1: column 'caption' holds None"),
        (
            "t.csv",
            "caption,media_path\nx, \n",
            "row 1: column 'media_path' is empty. Give the path of a clip or take the row out.",
        ),
        (
            "t.json",
            '[{"caption": "x", "media_path": "a.mp4", "reference_path": 3}]',
            "row 1: column 'reference_path' holds 3, expected text or a list of it",
        ),
        (
            "t.json",
            '[{"caption": "x", "media_path": "a.mp4", "reference_path": ["", "r.mp4"]}]',
            r"row 1: column 'reference_path' holds an empty path among others: \['', 'r.mp4'\]",
        ),
        ("t.jsonl", f"{GOOD}\n\n{{]", "line 3: not valid JSON"),
        ("t.csv", "caption,path\nx,a.mp4\n", "row 1: no column 'media_path'"),
        ("t.csv", "media_path,caption\na.mp4\n", "row 1: column 'caption' holds None"),
    ],
)
def test_unusable_tables_are_refused_with_file_row_and_column(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_table(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


def test_a_row_that_fills_some_reference_columns_is_refused(tmp_path: Path) -> None:
    """Its only reference would be trained as the first, which in other rows is of another kind."""
    table = tmp_path / "t.csv"
    table.write_text("caption,media_path,depth,edges\nx,a.mp4,,e.mp4\n")
    with pytest.raises(InputError) as error:
        read_table(table, reference="depth,edges")
    assert str(error.value) == (
        f"{table}: row 1: column 'depth' is empty and 'edges' is not: a row has references in all reference "
        "columns or in none."
    )


def test_missing_files_are_all_counted_and_the_first_named(tmp_path: Path) -> None:
    table = tmp_path / "t.json"
    names = ["a.mp4", *(f"gone{number}.mp4" for number in range(7))]
    entries: list[dict] = [{"caption": "x", "media_path": name} for name in names]
    entries[0]["reference_path"] = "r.mp4"
    table.write_text(json.dumps(entries))
    (tmp_path / "a.mp4").touch()
    with pytest.raises(InputError) as error:
        check_media(table, read_table(table))
    assert str(error.value) == (
        f"{table}: 8 media file(s) not found, looked for relative to {tmp_path}: r.mp4 (of a.mp4); gone0.mp4; "
        "gone1.mp4; gone2.mp4; gone3.mp4; .... Correct the paths or take those rows out."
    )


def test_the_digest_follows_what_rows_say_and_not_where_or_how_they_are_written(tmp_path: Path) -> None:
    first = write_table(tmp_path / "a" / "t.csv", ENTRIES)
    other = write_table(tmp_path / "b" / "t.jsonl", [{**entry, "more": 1} for entry in ENTRIES])
    assert digest(first, read_table(first)) == digest(other, read_table(other))
    seen = {digest(first, read_table(first))}
    for change in ({"caption": "y"}, {"media_path": "c.mp4"}, {"reference_path": "edges/b.mp4"}):
        changed = write_table(tmp_path / "c.json", [{**ENTRIES[0], **change}, *ENTRIES[1:]])
        seen.add(digest(changed, read_table(changed)))
    shuffled = write_table(tmp_path / "d.json", ENTRIES[::-1])
    assert len(seen | {digest(shuffled, read_table(shuffled))}) == 5


def test_missing_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such dataset file"):
        read_table(tmp_path / "t.csv")
    (tmp_path / "t.csv").write_bytes("media_path,caption\na.mp4,ä\n".encode("latin-1"))
    with pytest.raises(InputError, match="UTF-8"):
        read_table(tmp_path / "t.csv")


def test_a_table_saved_by_a_spreadsheet_reads(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").touch()
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbfcaption,media_path\r\nx,a.mp4 \r\n")
    assert read_table(tmp_path / "t.csv")[0].media == tmp_path / "a.mp4"


@given(st.lists(st.text(st.sampled_from("ab/._- é"), min_size=1, max_size=6), max_size=12))
def test_keys_are_unique_and_usable(paths: list[str]) -> None:
    keys = sample_keys(paths)
    assert len(set(keys)) == len(keys)
    for key in keys:
        check_key(key)


@given(
    st.lists(st.sampled_from(["a/b.mp4", "a__b.mp4", "a.b.mp4", "c.mp4", "é.mp4"]), unique=True), st.randoms()
)
def test_a_key_does_not_depend_on_the_order_of_rows(paths: list[str], random) -> None:
    shuffled = random.sample(paths, len(paths))
    assert dict(zip(paths, sample_keys(paths), strict=True)) == dict(
        zip(shuffled, sample_keys(shuffled), strict=True)
    )
