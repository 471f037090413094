from __future__ import annotations

import os
from pathlib import Path

import pytest

from shards.errors import InputError
from shards.prepare.caption.listing import list_media
from shards.prepare.failures import Failure
from shards.prepare.tables.rows import read_rows, write_rows


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def test_a_folder_gives_its_media_sorted_and_nothing_hidden(tmp_path: Path) -> None:
    touch(tmp_path, "b.mp4", "a.MOV", "p.png", "notes.txt", ".x.mp4", "deep/c.webm", ".hidden/d.mp4")
    listing = list_media(tmp_path)
    assert listing.out == tmp_path / "dataset.jsonl"
    assert listing.uncaptioned(False) == ["a.MOV", "b.mp4", "p.png"]
    assert list_media(tmp_path, recursive=True).uncaptioned(False) == [
        "a.MOV",
        "b.mp4",
        "deep/c.webm",
        "p.png",
    ]
    assert list_media(tmp_path, extensions=[".MP4", " png"]).uncaptioned(False) == ["b.mp4", "p.png"]


def test_one_file_has_its_own_table(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    listing = list_media(tmp_path / "a.mp4")
    assert listing.out == tmp_path / "a.dataset.jsonl"
    assert listing.uncaptioned(False) == ["a.mp4"]


def test_paths_are_relative_to_the_table_wherever_it_lies(tmp_path: Path, monkeypatch) -> None:
    touch(tmp_path, "raw/a.mp4")
    assert list_media(tmp_path / "raw", tmp_path / "tables/t.csv").rows[0]["media_path"] == "../raw/a.mp4"
    monkeypatch.chdir(tmp_path / "raw")
    assert list_media(Path("."), Path("../t.csv")).rows[0]["media_path"] == "raw/a.mp4"
    write_rows(
        tmp_path / "raw/t.csv",
        [
            {
                "media_path": str(tmp_path / "raw/a.mp4"),
                "reference_path": ["e/a.mp4", "d/a.mp4"],
                "n": "1",
                "caption": "",
            },
            {"media_path": "a.mp4", "reference_path": "e/a.mp4", "caption": "x"},
        ],
    )
    moved = list_media(tmp_path / "raw/t.csv", tmp_path / "t.json").rows
    assert [row["media_path"] for row in moved] == ["raw/a.mp4"] * 2
    assert [row["reference_path"] for row in moved] == [["raw/e/a.mp4", "raw/d/a.mp4"], "raw/e/a.mp4"]
    assert [row["n"] for row in moved] == ["1", ""]


def test_other_columns_that_name_files_follow_the_table(tmp_path: Path) -> None:
    touch(tmp_path, "raw/a.mp4", "raw/d/a.mp4", "raw/e/a.mp4", "raw/licence")
    row = {
        "media_path": "a.mp4",
        "caption": "d/a.mp4",
        "depth": "d/a.mp4",
        "both": "d/a.mp4;e/a.mp4",
        "half": "d/a.mp4;gone.mp4",
        "whole": str(tmp_path / "raw/a.mp4"),
        "note": "licence",
        "text": "x" * 5000 + ".mp4",
    }
    write_rows(tmp_path / "raw/t.csv", [row])
    (moved,) = list_media(tmp_path / "raw/t.csv", tmp_path / "t.csv").rows
    assert moved == {
        **row,
        "media_path": "raw/a.mp4",
        "depth": "raw/d/a.mp4",
        "both": ["raw/d/a.mp4", "raw/e/a.mp4"],
    }
    write_rows(tmp_path / "raw/t.csv", [{**row, "depth": "./d/a.mp4"}])
    assert list_media(tmp_path / "raw/t.csv").rows[0]["depth"] == "./d/a.mp4", "and stay beside it"


def test_a_file_whose_name_is_no_text_is_listed_as_unusable(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", os.fsdecode(b"\xe9t\xe9.mp4"))
    listing = list_media(tmp_path)
    assert listing.uncaptioned(False) == ["a.mp4"]
    assert listing.unusable == (Failure(r"\xe9t\xe9.mp4", "its name is not UTF-8 text: rename it"),)


def test_new_files_join_the_table_that_is_there(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    write_rows(
        tmp_path / "dataset.jsonl",
        [
            {"media_path": "c.mp4", "caption": "seen", "n": 1},
            {"media_path": "gone.mp4", "caption": " "},
        ],
    )
    listing = list_media(tmp_path)
    assert listing.uncaptioned(False) == ["gone.mp4", "a.mp4", "b.mp4"]
    assert listing.uncaptioned(True) == ["c.mp4", "gone.mp4", "a.mp4", "b.mp4"]
    captions = {"a.mp4": "new", "c.mp4": "other"}
    assert listing.captioned(captions, False) == [
        {"media_path": "c.mp4", "caption": "seen", "n": 1},
        {"media_path": "gone.mp4", "caption": " "},  # a row of the user stays
        {"caption": "new", "media_path": "a.mp4"},  # and b.mp4, that got none, does not come in
    ]
    assert listing.captioned(captions, True)[0] == {"media_path": "c.mp4", "caption": "other", "n": 1}


def test_a_table_is_filled_in_place_unless_told_otherwise(tmp_path: Path) -> None:
    write_rows(tmp_path / "t.jsonl", [{"caption": None, "media_path": "a.mp4"}, {"media_path": "a.mp4"}])
    listing = list_media(tmp_path / "t.jsonl")
    assert listing.out == tmp_path / "t.jsonl"
    assert listing.uncaptioned(False) == ["a.mp4"], "a clip named twice is captioned once"
    assert [row["caption"] for row in listing.captioned({"a.mp4": "x"}, False)] == ["x", "x"]
    write_rows(tmp_path / "out.csv", [{"media_path": "a.mp4", "caption": "from before"}])
    again = list_media(tmp_path / "t.jsonl", tmp_path / "out.csv")
    assert again.uncaptioned(False) == []
    assert [row["caption"] for row in again.captioned({}, False)] == ["from before"] * 2


def test_columns_can_have_other_names(tmp_path: Path) -> None:
    write_rows(tmp_path / "t.csv", [{"text": "x", "video": "a.mp4"}, {"text": "", "video": "b.mp4"}])
    assert list_media(tmp_path / "t.csv", caption="text", media="video").uncaptioned(False) == ["b.mp4"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone", "no such file or folder. Give a folder of media, a media file or a table."),
        ("empty", "no media files (jpg, mp4) in it. --recursive looks into folders in it, too."),
        ("a.txt", "neither a table nor one of jpg, mp4. See --extensions."),
        ("none.csv", "no rows in it. Write one row per clip with the column 'media_path'."),
        ("other.csv", "row 1: no column 'media_path' (there are: 'caption', 'path')."),
        (
            "blank.json",
            "row 2: column 'media_path' is empty. Give the path of a clip or take the row out.",
        ),
        ("number.json", "row 1: column 'media_path' holds 3, expected a path."),
    ],
)
def test_what_holds_nothing_to_caption_is_refused(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path, "a.txt", "none.csv")
    (tmp_path / "other.csv").write_text("caption,path\nx,a.mp4\n")
    write_rows(tmp_path / "number.json", [{"media_path": 3}])
    write_rows(tmp_path / "blank.json", [{"media_path": "a.mp4"}, {"media_path": " "}])
    with pytest.raises(InputError) as error:
        list_media(tmp_path / source, extensions=("mp4", "jpg"))
    assert str(error.value) == f"{tmp_path / source}: {message}"


def test_a_table_to_write_has_a_known_kind(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4")
    with pytest.raises(
        InputError, match=r"--out .*t.txt: unknown kind of dataset file. Name it .csv, .json or .jsonl."
    ):
        list_media(tmp_path, tmp_path / "t.txt")


def test_what_is_written_and_read_again_is_complete(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "b.mp4")
    for suffix in (".csv", ".json", ".jsonl"):
        out = tmp_path / f"t{suffix}"
        first = list_media(tmp_path, out)
        write_rows(out, first.captioned({"a.mp4": "x", "b.mp4": "y"}, False))
        assert list_media(tmp_path, out).uncaptioned(False) == []
        assert read_rows(out) == [
            {"caption": "x", "media_path": "a.mp4"},
            {"caption": "y", "media_path": "b.mp4"},
        ]
        os.unlink(out)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        ('[{"media_path": "a.mp4", "caption": "mine"}]', "dataset.json"),
        ('{"version": 1}', "dataset.jsonl"),  # what describes a dataset
    ],
)
def test_a_json_table_of_the_folder_is_gone_on_with(tmp_path: Path, content: str, name: str) -> None:
    for file in ("a.mp4", "b.mp4"):
        (tmp_path / file).touch()
    (tmp_path / "dataset.json").write_text(content)
    assert list_media(tmp_path).out == tmp_path / name
    (tmp_path / "dataset.jsonl").touch()
    assert list_media(tmp_path).out == tmp_path / "dataset.jsonl"
