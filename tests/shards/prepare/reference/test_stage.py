"""References are made once for each clip, match it frame by frame, and are named in the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import shards.prepare.work.job as job_module
from shards.errors import InputError
from shards.prepare.media.video import probe, read_clip, write_clip
from shards.prepare.reference.filters import Filter, FilterOptions, builtin, plugin
from shards.prepare.reference.stage import ReferenceOptions, ReferenceReport, check_request, make_references
from shards.prepare.tables.rows import read_rows, write_rows
from shards.prepare.tables.table import read_table
from shards.prepare.work.workers import Worker
from tests.support.clips import PALETTE, filmed, ramp, write_ramp
from tests.support.footage import damage, scene, tree, turn, write_changing_size, write_scenes

CANNY = builtin("canny")
GRAY = builtin("grayscale")


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """Two videos, one of them turned, and a picture."""
    write_ramp(tmp_path / "clips/a.mp4", 20, fps=30000 / 1001)
    turn(write_ramp(tmp_path / "clips/deep/b.mov", 9, 96, 64))
    Image.fromarray(scene(3, 1, 51, 33)[0]).save(tmp_path / "c.jpg")
    clips = ("clips/a.mp4", "clips/deep/b.mov", "c.jpg")
    rows = [{"media_path": name, "caption": f"clip {name}", "extra": 1} for name in clips]
    write_rows(tmp_path / "t.jsonl", rows)
    return tmp_path / "t.jsonl"


def run(table: Path, filter: Filter = CANNY, **options: Any) -> ReferenceReport:
    return make_references(check_request(table, filter, ReferenceOptions(**options)))


def column(table: Path, name: str = "reference_path") -> list[Any]:
    return [row.get(name) for row in read_rows(table)]


def test_references_match_their_clips(table: Path) -> None:
    report = run(table)
    assert (report.references, report.failures) == (3, [])
    for row in read_table(table):
        (reference,) = row.references
        assert probe(reference) == probe(row.media)
    assert [path.name for row in read_table(table) for path in row.references] == ["a.mp4", "b.mp4", "c.png"]


def test_the_table_keeps_all_else(table: Path) -> None:
    before = read_rows(table)
    run(table)
    after = read_rows(table)
    assert [row["reference_path"] for row in after] == [
        "references/canny/clips/a.mp4",
        "references/canny/clips/deep/b.mp4",
        "references/canny/c.png",
    ]
    assert [{name: row[name] for name in row if name != "reference_path"} for row in after] == before


@pytest.mark.parametrize("kind", ["canny", "blur", "grayscale", "downscale"])
def test_pictures_hold_what_the_filter_gave(table: Path, kind: str) -> None:
    run(table, builtin(kind))
    picture = read_clip(table.parent / f"references/{kind}/c.png", 1)
    assert np.array_equal(picture, builtin(kind).apply(read_clip(table.parent / "c.jpg", 1)))


def test_edges_survive_compression(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", read_clip(filmed("bikes"), 40), 25)
    write_rows(tmp_path / "t.csv", [{"media_path": "a.mp4", "caption": "x"}])
    run(tmp_path / "t.csv")
    found = read_clip(tmp_path / "references/canny/a.mp4", 40) > 127
    expected = CANNY.apply(read_clip(tmp_path / "a.mp4", 40)) > 127
    assert expected.mean() > 0.01
    assert np.array_equal(found, expected)


def test_grey_stays_grey(table: Path) -> None:
    run(table, GRAY)
    frames = read_clip(table.parent / "references/grayscale/clips/a.mp4", 20)
    assert np.ptp(frames, axis=3).max() == 0


def test_smaller_references_are_smaller_files_of_pixels(table: Path) -> None:
    run(table, builtin("downscale", FilterOptions(factor=3)))
    assert probe(table.parent / "references/downscale-3/clips/a.mp4")[:3] == (20, 21, 21)
    run(table, builtin("downscale", FilterOptions(factor=3, keep_size=True)), column="other")
    assert probe(table.parent / "references/downscale-3-kept/clips/a.mp4")[:3] == (20, 64, 64)


@pytest.mark.parametrize("kind", ["grayscale", "whole"])
def test_a_clip_that_changes_its_size_gets_a_reference_of_its_first(tmp_path: Path, kind: str) -> None:
    write_changing_size(tmp_path / "a.ts", [(64, 48), (96, 80)], 20)
    write_rows(tmp_path / "t.jsonl", [{"media_path": "a.ts", "caption": "x"}])
    report = run(tmp_path / "t.jsonl", Filter(kind, lambda frames: frames, True) if kind == "whole" else GRAY)
    assert report.failures == []
    assert probe(report.folder / "a.mp4")[1:3] == (64, 48)
    assert probe(report.folder / "a.mp4").frames == probe(tmp_path / "a.ts").frames


def test_a_function_of_the_user_sees_whole_upright_clips(table: Path) -> None:
    code = "def inverse(frames):\n    return 255 - frames if frames.shape == (9, 96, 64, 3) else frames\n"
    (table.parent / "mine.py").write_text(code)
    made = plugin(f"{table.parent / 'mine.py'}:inverse")
    run(table, made)
    reference = table.parent / f"references/{made.label}/clips/deep/b.mp4"
    expected = 255 - np.rot90(ramp(9, 96, 64, PALETTE[0]), -1, axes=(1, 2)).astype(int)
    assert np.abs(read_clip(reference, 9) - expected).mean() < 4


def test_what_is_there_is_left(table: Path) -> None:
    run(table)
    reference = table.parent / "references/canny/c.png"
    reference.write_bytes(b"mine")
    report = run(table)
    assert report.references == 3
    assert reference.read_bytes() == b"mine"


def test_what_was_removed_is_made_again(table: Path) -> None:
    run(table)
    before = tree(table.parent, leave=".reference")
    (table.parent / "references/canny/c.png").unlink()
    assert run(table).references == 3
    assert tree(table.parent, leave=".reference") == before


def test_overwrite_makes_all_again(table: Path) -> None:
    run(table)
    before = tree(table.parent, leave=".reference")
    (table.parent / "references/canny/c.png").write_bytes(b"broken")
    assert run(table, overwrite=True).references == 3
    assert tree(table.parent, leave=".reference") == before


def test_clips_added_later_get_theirs(table: Path) -> None:
    run(table)
    write_ramp(table.parent / "d.mp4", 5)
    write_rows(table, [*read_rows(table), {"media_path": "d.mp4", "caption": "new"}])
    report = run(table)
    assert report.references == 4
    assert column(table)[3] == "references/canny/d.mp4"


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv"])
def test_several_references_of_a_clip(table: Path, suffix: str) -> None:
    other = table.with_suffix(suffix)
    write_rows(other, read_rows(table))
    run(other)
    run(other, GRAY, append=True)
    for _ in range(2):
        run(other, append=True)
    expected = [f"references/{kind}/clips/a.mp4" for kind in ("canny", "grayscale")]
    assert [path.relative_to(table.parent).as_posix() for path in read_table(other)[0].references] == expected


def test_another_column_and_another_table(table: Path) -> None:
    before = table.read_bytes()
    report = run(table, out=table.with_name("u.csv"), column="edges")
    assert report.table == table.with_name("u.csv")
    assert table.read_bytes() == before
    assert column(table.with_name("u.csv"), "edges")[2] == "references/canny/c.png"


@pytest.mark.parametrize("name", ["u.jsonl", "u.csv"])
def test_another_table_that_is_there_keeps_its_rows_and_columns(table: Path, name: str) -> None:
    out = table.with_name(name)
    run(table, GRAY, out=out, column="gray")
    write_rows(out, [row | {"caption": "mine"} for row in read_rows(out)])
    write_ramp(table.parent / "d.mp4", 5)
    write_rows(table, [*read_rows(table), {"media_path": "d.mp4", "caption": "new"}])
    run(table, CANNY, out=out, column="edges")
    assert [path or None for path in column(out, "gray")] == [
        *(f"references/grayscale/{clip}" for clip in ("clips/a.mp4", "clips/deep/b.mp4", "c.png")),
        None,
    ]
    assert column(out, "edges")[3] == "references/canny/d.mp4"
    assert column(out, "caption") == ["mine", "mine", "mine", "new"]


def test_another_table_of_other_clips_is_left_alone(table: Path) -> None:
    out = table.with_name("u.jsonl")
    write_rows(out, [{"media_path": "other.mp4", "gray": "g.mp4"}])
    before = out.read_bytes()
    with pytest.raises(InputError) as error:
        run(table, out=out)
    assert str(error.value) == (
        f"--out {out}: is there and lists 'other.mp4', which {table} does not: give another name, or remove it"
    )
    assert out.read_bytes() == before
    assert not (table.parent / "references").exists()


def test_a_clip_too_small_to_be_made_smaller_is_a_failure(table: Path) -> None:
    report = run(table, builtin("downscale", FilterOptions(factor=8)))
    assert report.failures == [("c.jpg", "51x33 pixels are too few for --factor 8")]


def test_references_are_replaced_only_when_asked(table: Path) -> None:
    run(table)
    message = r"row 1: column 'reference_path' names 'references/canny/clips/a\.mp4' already: --append adds"
    with pytest.raises(InputError, match=message):
        run(table, GRAY)
    run(table, GRAY, replace=True)
    assert column(table)[0] == "references/grayscale/clips/a.mp4"


def test_a_clip_that_cannot_be_read_is_recorded_and_gets_none(table: Path) -> None:
    (table.parent / "c.jpg").write_bytes(b"nothing")
    damage(write_scenes(table.parent / "clips/a.mp4", [40]), 20)
    report = run(table)
    assert report.references == 1
    assert column(table) == [None, "references/canny/clips/deep/b.mp4", None]
    assert [name for name, _ in report.failures] == ["clips/a.mp4", "c.jpg"]
    assert "after " in report.failures[0][1]
    recorded = read_rows(report.folder / "failures.jsonl")
    assert [(row["source"], row["reason"]) for row in recorded] == report.failures
    assert sorted(path.name for path in (table.parent / "references").rglob("*.*")) == [
        "b.mp4",
        "failures.jsonl",
    ]
    Image.fromarray(scene(3, 1, 51, 33)[0]).save(table.parent / "c.jpg")
    write_ramp(table.parent / "clips/a.mp4", 20)
    assert run(table).failures == []
    assert not (report.folder / "failures.jsonl").exists()


def test_a_clip_on_which_the_users_function_fails_is_recorded(table: Path) -> None:
    (table.parent / "mine.py").write_text(
        "def f(frames):\n    assert len(frames) > 1, 'no picture'\n    return frames\n"
    )
    spec = f"{table.parent / 'mine.py'}:f"
    report = run(table, plugin(spec))
    assert report.failures == [("c.jpg", f"--compute '{spec}': AssertionError: no picture (mine.py, line 2)")]
    assert column(table)[2] is None


def test_whatever_goes_wrong_with_a_clip_is_its_own_failure(table: Path) -> None:
    def picky(frames: np.ndarray) -> np.ndarray:
        if len(frames) == 1:
            raise RuntimeError("a picture\nis no film")
        return frames

    report = run(table, Filter("picky", picky, True))
    assert report.failures == [("c.jpg", "RuntimeError: a picture")]
    assert column(table)[:2] == ["references/picky/clips/a.mp4", "references/picky/clips/deep/b.mp4"]


def test_a_result_that_is_no_frames_ends_it(table: Path) -> None:
    before = table.read_bytes()
    (table.parent / "mine.py").write_text("def f(frames):\n    return frames / 255\n")
    with pytest.raises(InputError, match=r"gave float64, expected uint8 .*\(clips/a\.mp4\)$"):
        run(table, plugin(f"{table.parent / 'mine.py'}:f"))
    assert table.read_bytes() == before


def test_where_no_clip_can_be_read_it_is_an_error(table: Path) -> None:
    for path in ("clips/a.mp4", "clips/deep/b.mov", "c.jpg"):
        (table.parent / path).unlink()
    before = table.read_bytes()
    with pytest.raises(
        InputError, match=r"none of 3 clips got a reference; the first, clips/a\.mp4: No such file"
    ):
        run(table)
    assert table.read_bytes() == before


def test_clips_that_would_share_a_reference_have_their_own(tmp_path: Path) -> None:
    inside = tmp_path / "data"
    names = ["a.mp4", "a.mov", "x;y.mp4", "../out.mp4", str(tmp_path / "b.mp4")]
    for number, name in enumerate(names):
        write_ramp(inside / name, 5, colour=number)
    write_rows(inside / "t.csv", [{"media_path": name, "caption": "x"} for name in [*names, names[0]]])
    assert run(inside / "t.csv", GRAY).references == 5
    references = [row.references for row in read_table(inside / "t.csv")]
    assert all(len(paths) == 1 for paths in references)
    assert len(set(references)) == 5
    assert references[0] == references[5]
    for (path,) in references:
        assert path.resolve().is_relative_to((inside / "references/grayscale").resolve())
        assert path.is_file()


def test_workers_share_the_clips_and_write_the_same(table: Path) -> None:
    names = [f"many/{number}.png" for number in range(40)]
    for number, name in enumerate(names):
        (table.parent / name).parent.mkdir(exist_ok=True)
        Image.fromarray(scene(number, 1, 24, 24)[0]).save(table.parent / name)
    write_rows(table, [{"media_path": name} for name in names])
    seen: list[tuple[int, int]] = []
    request = check_request(table, CANNY, ReferenceOptions())
    for index in (2, 0, 1):
        make_references(request, Worker(index, 3), lambda done, total: seen.append((done, total)))
    assert seen[-1] == (3, 3)
    assert [path.split("/")[-1] for path in column(table)] == [f"{number}.png" for number in range(40)]
    assert len(list((table.parent / "references/canny/many").iterdir())) == 40


def test_rows_and_captions_written_meanwhile_are_kept(table: Path) -> None:
    request = check_request(table, CANNY, ReferenceOptions())
    rows = [row | {"caption": "better"} for row in read_rows(table)]
    write_rows(table, [*rows, {"media_path": "new.mp4", "caption": "x"}])
    make_references(request)
    assert {row["caption"] for row in read_rows(table)} == {"better", "x"}
    assert len(column(table)) == 4
    assert column(table)[3] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"append": True, "replace": True}, "--append keeps the references of a row and --replace does not"),
        ({"crf": -1}, "--crf -1 must be between 0"),
        ({"out": Path("/elsewhere/t.csv")}, "must be in .*, since paths are relative to the table"),
        (
            {"media_column": "film"},
            r"row 1: no column 'film' \(there are: 'media_path', 'caption', 'extra'\)",
        ),
        ({"column": "extra"}, "column 'extra' holds 1, expected text or a list of it"),
        ({"media_column": "extra"}, "row 1: column 'extra' holds 1, not a path"),
    ],
)
def test_requests_that_make_no_sense(table: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(table, **options)
    assert not (table.parent / ".reference").exists()


def test_a_file_lost_in_the_middle_of_the_work_is_made_again(table: Path) -> None:
    run(table)
    before = tree(table.parent, leave=".reference")
    job = next((table.parent / ".reference").iterdir())
    (job / "result.json").unlink()
    (table.parent / "references/canny/c.png").unlink()
    assert run(table).references == 3
    assert tree(table.parent, leave=".reference") == before


def test_a_table_that_was_put_back_gets_its_column_again(table: Path) -> None:
    before = table.read_bytes()
    run(table)
    after = table.read_bytes()
    table.write_bytes(before)
    assert run(table).references == 3
    assert table.read_bytes() == after


def test_tasks_of_an_array_that_start_one_after_another_make_all_again_once(
    table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(table, overwrite=True)
    made = 0

    def apply(frames: np.ndarray) -> np.ndarray:
        nonlocal made
        made += 1
        return frames

    monkeypatch.setattr(job_module, "_REOPENING_S", 0.1)
    request = check_request(table, Filter("canny", apply, True), ReferenceOptions(overwrite=True))
    for index in (1, 0, 2, 1):
        make_references(request, Worker(index, 3))
    assert made == 3
    assert len(list((table.parent / ".reference").iterdir())) == 1
