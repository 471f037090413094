"""Videos become clips, a table and previews; doing it again, or more of it, changes nothing that is there."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import shards.prepare.split.stage as module
from shards.errors import InputError
from shards.prepare.media.clip_error import ClipError
from shards.prepare.media.video import probe, read_clip
from shards.prepare.split.scenes import Length, SceneOptions
from shards.prepare.split.sheet import PER_PAGE
from shards.prepare.split.stage import SplitReport, check_request, split
from shards.prepare.tables.rows import read_rows, write_rows
from shards.prepare.work.workers import Worker
from tests.support.clips import write_ramp
from tests.support.footage import damage, tree, turn, write_changing_size, write_scenes

LENGTHS = (20, 33, 17)


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    folder = tmp_path / "videos"
    write_scenes(folder / "a.mp4", LENGTHS, rate=Fraction(30000, 1001))
    write_scenes(folder / "b.mp4", (25, 18), first=7)
    return folder


def run(*inputs: Path, out: Path, options: SceneOptions | None = None, **settings: Any) -> SplitReport:
    return split(check_request(inputs, out, options or SceneOptions(), **settings))


def test_a_clip_holds_the_frames_of_its_scene(videos: Path, tmp_path: Path) -> None:
    report = run(videos / "a.mp4", out=tmp_path / "out", crf=4)
    assert (report.videos, report.scenes) == (1, 3)
    assert report.seconds == pytest.approx(sum(LENGTHS) * 1001 / 30000)
    source = read_clip(videos / "a.mp4", 70).astype(int)
    for number, length in enumerate(LENGTHS):
        clip = tmp_path / f"out/a/a-scene-{number + 1:04d}.mp4"
        assert probe(clip) == (length, 64, 48, pytest.approx(30000 / 1001))
        first = sum(LENGTHS[:number])
        difference = np.abs(read_clip(clip, length) - source[first : first + length])
        assert difference.mean(axis=(1, 2, 3)).max() < 2


@pytest.mark.parametrize("name", ["dataset.jsonl", "clips.json", "t.csv"])
def test_the_table_names_every_clip(videos: Path, tmp_path: Path, name: str) -> None:
    report = run(videos, out=tmp_path / "out", table=name)
    assert report.table == tmp_path / "out" / name
    rows = read_rows(report.table)
    assert [row["media_path"] for row in rows] == [
        *(f"a/a-scene-{number:04d}.mp4" for number in (1, 2, 3)),
        *(f"b/b-scene-{number:04d}.mp4" for number in (1, 2)),
    ]
    assert {row["caption"] for row in rows} == {""}
    assert rows[4]["source"] == "../videos/b.mp4", "relative to the table, as all paths in it"
    assert (float(rows[4]["start"]), float(rows[4]["end"])) == pytest.approx((25 / 24, 43 / 24))


def test_previews_lie_apart_from_the_clips(videos: Path, tmp_path: Path) -> None:
    run(videos, out=tmp_path / "out")
    with Image.open(tmp_path / "out/previews/a.jpg") as picture:
        assert picture.format == "JPEG"
        assert picture.width > picture.height
    assert sorted(tree(tmp_path / "out/previews")) == ["a.jpg", "b.jpg"]


def test_many_scenes_take_several_pages(tmp_path: Path) -> None:
    count = PER_PAGE + 1
    write_scenes(tmp_path / "a.mp4", [4] * count, width=32, height=32)
    report = run(tmp_path / "a.mp4", out=tmp_path / "out", options=SceneOptions(min_scene_length=2))
    assert report.scenes == count
    pages = [Image.open(tmp_path / "out/previews" / name) for name in ("a.jpg", "a-2.jpg")]
    assert pages[0].height > 5 * pages[1].height


def test_turned_videos_become_upright_clips(tmp_path: Path) -> None:
    turn(write_scenes(tmp_path / "a.mp4", LENGTHS))
    run(tmp_path / "a.mp4", out=tmp_path / "out")
    assert probe(tmp_path / "out/a/a-scene-0002.mp4")[:3] == (33, 48, 64)
    with Image.open(tmp_path / "out/previews/a.jpg") as picture:
        assert picture.width > 0


def test_a_video_that_changes_its_size_is_split(tmp_path: Path) -> None:
    write_changing_size(tmp_path / "a.ts", [(64, 48), (96, 80)], 20)
    report = run(tmp_path / "a.ts", out=tmp_path / "out")
    assert report.failures == []
    assert {probe(clip)[1:3] for clip in (tmp_path / "out/a").iterdir()} == {(64, 48)}


def test_folders_below_keep_their_place(videos: Path, tmp_path: Path) -> None:
    write_ramp(videos / "deep/er/c.mp4", 20)
    run(videos, out=tmp_path / "out", recursive=True)
    assert (tmp_path / "out/deep/er/c/c-scene-0001.mp4").is_file()
    assert (tmp_path / "out/previews/deep/er/c.jpg").is_file()


def test_scenes_that_are_left_out_are_counted(videos: Path, tmp_path: Path) -> None:
    options = SceneOptions(filter_shorter_than=Length(20), max_scenes=1)
    report = run(videos, out=tmp_path / "out", options=options)
    assert report.scenes == 2
    assert report.left_out == {"shorter than 20 frames": 2, "after the first 1": 1}


def test_a_video_that_cannot_be_read_is_recorded_and_the_others_are_split(
    videos: Path, tmp_path: Path
) -> None:
    (videos / "bad.mp4").write_bytes(b"nothing")
    (videos / "empty.mp4").touch()
    (videos / "gone.mp4").symlink_to("nowhere")
    report = run(videos, out=tmp_path / "out")
    assert report.scenes == 5
    assert [(Path(source).name, reason) for source, reason in report.failures] == [
        ("bad.mp4", "Invalid data found when processing input"),
        ("empty.mp4", "the file is empty"),
        ("gone.mp4", "No such file or directory"),
    ]
    recorded = read_rows(tmp_path / "out/failures.jsonl")
    assert [(row["source"], row["reason"]) for row in recorded] == report.failures


def test_what_failed_is_tried_again_though_its_size_is_the_same(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find_scenes(path: Path, *arguments: Any) -> Any:
        if path.name == "a.mp4":
            raise ClipError(path, "Input/output error")
        return module_find_scenes(path, *arguments)

    module_find_scenes = module.find_scenes
    monkeypatch.setattr(module, "find_scenes", find_scenes)
    assert run(videos, out=tmp_path / "out").failures == [(str(videos / "a.mp4"), "Input/output error")]
    monkeypatch.undo()
    report = run(videos, out=tmp_path / "out")
    assert (report.scenes, report.failures) == (5, [])
    assert len(read_rows(report.table)) == 5
    assert not (tmp_path / "out/failures.jsonl").exists()


def test_failures_of_calls_with_other_videos_stay_listed_until_they_are_split(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        write_scenes(tmp_path / folder / f"good-{folder}.mp4", LENGTHS)
    bad = tmp_path / "one/bad.mp4"
    bad.write_bytes(b"nothing")
    listed = [{"source": str(bad), "reason": "Invalid data found when processing input"}]
    for folder in ("one", "two"):
        run(tmp_path / folder, out=tmp_path / "out")
        assert read_rows(tmp_path / "out/failures.jsonl") == listed
    write_scenes(bad, LENGTHS)
    run(tmp_path / "two/../one/bad.mp4", out=tmp_path / "out")
    assert not (tmp_path / "out/failures.jsonl").exists()


def test_a_video_that_breaks_off_is_used_up_to_there(videos: Path, tmp_path: Path) -> None:
    damage(videos / "a.mp4", 60)
    report = run(videos, out=tmp_path / "out")
    ((source, reason),) = report.damaged
    assert source == str(videos / "a.mp4")
    assert "after " in reason
    assert [probe(tmp_path / f"out/a/a-scene-000{n}.mp4").frames for n in (1, 2)] == [20, 33]


def test_where_no_video_can_be_read_it_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "bad.mp4").write_bytes(b"nothing")
    with pytest.raises(
        InputError, match=r"none of 1 videos could be split; the first, .*bad\.mp4: Invalid data"
    ):
        run(tmp_path / "bad.mp4", out=tmp_path / "out")


def test_names_need_not_be_plain_but_must_be_text(videos: Path, tmp_path: Path) -> None:
    (videos / "a.mp4").rename(videos / "ein Hügel; 山.mp4")
    (videos / "b.mp4").rename(videos / "b\udcff.mp4")
    report = run(videos, out=tmp_path / "out")
    assert (tmp_path / "out/ein Hügel; 山/ein Hügel; 山-scene-0001.mp4").is_file()
    assert [reason for _, reason in report.failures] == ["its name is not UTF-8 text: rename it"]


def test_doing_it_again_changes_nothing(videos: Path, tmp_path: Path) -> None:
    first = run(videos, out=tmp_path / "out")
    before = tree(tmp_path / "out")
    assert run(videos, out=tmp_path / "out") == first
    assert tree(tmp_path / "out") == before


def test_workers_share_the_videos_and_write_the_same(videos: Path, tmp_path: Path) -> None:
    run(videos, out=tmp_path / "one")
    seen: list[tuple[int, int]] = []
    request = check_request([videos], tmp_path / "two", SceneOptions())
    for index in (1, 0):
        split(request, Worker(index, 2), on_videos=lambda done, total: seen.append((done, total)))
    assert tree(tmp_path / "two", leave=".split") == tree(tmp_path / "one", leave=".split")
    assert seen[-1] == (2, 2)


def test_more_videos_are_added_to_what_is_there(videos: Path, tmp_path: Path) -> None:
    run(videos / "b.mp4", out=tmp_path / "out")
    table = tmp_path / "out/dataset.jsonl"
    write_rows(table, [row | {"caption": "mine"} for row in read_rows(table)])
    clip = tmp_path / "out/b/b-scene-0001.mp4"
    clip.write_bytes(b"would be written anew")
    run(videos, out=tmp_path / "out")
    assert [(row["media_path"], row["caption"]) for row in read_rows(table)] == [
        ("b/b-scene-0001.mp4", "mine"),
        ("b/b-scene-0002.mp4", "mine"),
        *((f"a/a-scene-000{number}.mp4", "") for number in (1, 2, 3)),
    ]
    assert clip.read_bytes() == b"would be written anew"


def test_clips_that_were_thrown_away_stay_away(videos: Path, tmp_path: Path) -> None:
    run(videos / "b.mp4", out=tmp_path / "out")
    (tmp_path / "out/b/b-scene-0001.mp4").unlink()
    run(videos, out=tmp_path / "out")
    assert [row["media_path"] for row in read_rows(tmp_path / "out/dataset.jsonl")][:2] == [
        "b/b-scene-0002.mp4",
        "a/a-scene-0001.mp4",
    ]
    assert not (tmp_path / "out/b/b-scene-0001.mp4").exists()


def test_a_table_that_was_removed_comes_back(videos: Path, tmp_path: Path) -> None:
    run(videos, out=tmp_path / "out")
    table = tmp_path / "out/dataset.jsonl"
    before = table.read_bytes()
    table.unlink()
    run(videos, out=tmp_path / "out")
    assert sorted(table.read_bytes().splitlines()) == sorted(before.splitlines())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"options": SceneOptions("hash")}, r'detector was "content" when this work began and is "hash" now'),
        ({"crf": 20}, "crf was 16 when this work began and is 20 now"),
    ],
)
def test_clips_of_a_folder_are_cut_in_one_way(
    videos: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    run(videos, out=tmp_path / "out")
    before = tree(tmp_path / "out")
    with pytest.raises(InputError, match=message):
        run(videos, out=tmp_path / "out", **change)
    assert tree(tmp_path / "out") == before


def test_an_input_more_makes_no_clip_twice(videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(videos / "a.mp4", out=out)
    write_scenes(videos / "a.mkv", (21, 19), first=11)
    (videos / "sub").mkdir()
    (videos / "b.mp4").rename(videos / "sub/b.mp4")
    run(videos / "sub", out=out)
    report = run(videos, out=out, recursive=True)
    rows = read_rows(report.table)
    assert sorted({row["media_path"].split("/")[0] for row in rows}) == ["a", "a_mkv", "b"]
    assert len(rows) == report.scenes == 3 + 2 + 2
    assert len({(row["source"], row["start"]) for row in rows}) == len(rows)


def test_another_video_of_the_same_name_has_a_folder_of_its_own(videos: Path, tmp_path: Path) -> None:
    run(videos / "a.mp4", out=tmp_path / "out")
    other = write_scenes(tmp_path / "other/a.mp4", (30,), first=20)
    run(other, out=tmp_path / "out")
    sources = {
        row["media_path"].split("/")[0]: row["source"] for row in read_rows(tmp_path / "out/dataset.jsonl")
    }
    assert sources.pop("a") == "../videos/a.mp4"
    ((name, source),) = sources.items()
    assert name.startswith("a-")
    assert source == "../other/a.mp4"


def test_a_video_that_changed_is_refused(videos: Path, tmp_path: Path) -> None:
    run(videos / "a.mp4", out=tmp_path / "out")
    write_scenes(videos / "a.mp4", (30,))
    with pytest.raises(InputError, match=r"out/a holds the scenes of .*videos/a\.mp4 .*give another --out"):
        run(videos / "a.mp4", out=tmp_path / "out")


def test_whatever_goes_wrong_with_a_video_is_its_own_failure(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module.find_scenes

    def find_scenes(path: Path, *arguments: Any) -> Any:
        if path.name == "a.mp4":
            raise RuntimeError("a bug\nin a library")
        return real(path, *arguments)

    monkeypatch.setattr(module, "find_scenes", find_scenes)
    report = run(videos, out=tmp_path / "out")
    assert report.failures == [(str(videos / "a.mp4"), "RuntimeError: a bug")]
    assert report.scenes == 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crf": 52}, "--crf 52 must be between 0"),
        ({"table": "t.txt"}, "--table 't.txt': a file name ending in"),
        ({"table": "deep/t.csv"}, "--table 'deep/t.csv'"),
        ({"options": SceneOptions("magic")}, "--detector 'magic' is not known"),
    ],
)
def test_requests_that_make_no_sense(
    videos: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(videos, out=tmp_path / "out", **settings)
    assert not (tmp_path / "out").exists()


def test_the_output_cannot_be_a_file(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    with pytest.raises(InputError, match="out is not a folder"):
        run(videos, out=tmp_path / "out")


def test_the_output_is_not_the_folder_of_the_videos(videos: Path) -> None:
    with pytest.raises(InputError, match=r"is the folder of the videos, and clips would lie among them"):
        run(videos, out=videos / "../videos")
    assert sorted(path.name for path in videos.iterdir()) == ["a.mp4", "b.mp4"]


def test_what_a_killed_worker_left_is_gone_at_the_end(videos: Path, tmp_path: Path) -> None:
    run(videos / "a.mp4", out=tmp_path / "out")
    job = next(path.parent for path in (tmp_path / "out/.split").glob("*/job.json"))
    (job / "result.json").unlink()
    (job / "scratch/tmp123").mkdir(parents=True)
    (job / "scratch/tmp123/clip.mp4").touch()
    run(videos / "a.mp4", out=tmp_path / "out")
    assert not (job / "scratch").exists()


def test_frames_are_told_over_both_readings(videos: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    request = replace(check_request([videos / "a.mp4"], tmp_path / "out", SceneOptions()))
    split(request, on_frame=lambda *what: told.append(what))
    assert told == [(f"a.mp4: {made}", n, 70) for made in ("scenes", "clips") for n in range(1, 71)]


def test_records_are_json(videos: Path, tmp_path: Path) -> None:
    run(videos / "a.mp4", out=tmp_path / "out")
    record = json.loads((tmp_path / "out/.split/videos/a.json").read_text())
    assert record["size"] == (videos / "a.mp4").stat().st_size
    assert len(record["clips"]) == 3
