"""Which videos are meant by files and folders, and how they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import InputError
from shards.prepare.split.footage import find_videos
from shards.prepare.split.record import Record, real_path


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(
    *inputs: Path,
    recursive: bool = True,
    leave: Path = Path("nowhere"),
    split: dict[str, Record] | None = None,
) -> list[str]:
    return [video.name for video in find_videos(inputs, recursive, leave, split or {})]


def records(videos: dict[str, Path]) -> dict[str, Record]:
    """As after splitting these videos under these names."""
    return {
        name: Record(source="", path=real_path(path), size=0, clips=[], left_out={}, damage=None)
        for name, path in videos.items()
    }


def test_folders_give_their_videos_and_no_other_files(tmp_path: Path) -> None:
    touch(tmp_path, "b.MP4", "a.mkv", "a.txt", ".c.mp4", "deep/er/d.webm", ".hidden/e.mp4", "out/f.mp4")
    assert names(tmp_path, recursive=False) == ["a", "b"]
    assert names(tmp_path, leave=tmp_path / "out") == ["a", "b", "deep/er/d"]
    assert names(tmp_path) == ["a", "b", "deep/er/d", "out/f"]


def test_a_file_counts_whatever_its_suffix(tmp_path: Path) -> None:
    touch(tmp_path, "a.film")
    assert names(tmp_path / "a.film") == ["a"]


def test_a_video_named_twice_is_one(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.mp4")
    (tmp_path / "link.mp4").symlink_to(tmp_path / "x/a.mp4")
    assert names(tmp_path / "x", tmp_path / "x/a.mp4", tmp_path / "link.mp4") == ["a"]


def test_names_that_two_would_share_are_longer(tmp_path: Path) -> None:
    touch(tmp_path, "x/a.mp4", "x/a.mov", "y/a.mp4", "y/b.mp4")
    found = names(tmp_path / "x", tmp_path / "y")
    assert found[0] == "a_mov"
    assert [name[: len("a_mp4-")] for name in found[1:3]] == ["a_mp4-"] * 2
    assert found[3] == "b"
    assert len(set(found)) == 4
    assert found == names(tmp_path / "y", tmp_path / "x")


@settings(max_examples=20)
@given(
    st.lists(st.sampled_from(["a.mp4", "a.mov", "d/a.mp4", "a.b.mp4", "a_mp4.mp4", "d/b.avi"]), min_size=1)
)
def test_every_video_has_a_name_of_its_own(
    tmp_path_factory: pytest.TempPathFactory, files: list[str]
) -> None:
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    touch(one, *files)
    touch(two, *files[::2])
    found = names(one, two)
    assert len(found) == len(set(found)) == len(set(files)) + len(set(files[::2]))


def test_a_video_keeps_the_name_under_which_it_was_split(tmp_path: Path) -> None:
    touch(tmp_path, "a.mp4", "a.mkv", "sub/x.mp4", "x.mp4")
    split = records({"a": tmp_path / "a.mp4", "x": tmp_path / "sub/x.mp4"})
    found = {video.path: video.name for video in find_videos([tmp_path], True, Path("nowhere"), split)}
    assert found[tmp_path / "a.mp4"] == "a"
    assert found[tmp_path / "a.mkv"] == "a_mkv"
    assert found[tmp_path / "sub/x.mp4"] == "x"
    assert found[tmp_path / "x.mp4"].startswith("x-")


def test_a_video_that_was_moved_keeps_its_name(tmp_path: Path) -> None:
    touch(tmp_path, "new/a.mp4")
    assert names(tmp_path / "new", split=records({"a": tmp_path / "old/a.mp4"})) == ["a"]


@settings(max_examples=50)
@given(st.data())
def test_names_do_not_depend_on_what_is_split_already(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    """Of workers on the same videos one that comes late finds records of others: it must not name them anew."""
    pool = ["a.mp4", "a.mov", "d/a.mp4", "a_mp4.mp4", "d/a_mp4.mov", "d/a.mov"]
    folder = tmp_path_factory.mktemp("videos")
    touch(folder, *pool)
    earlier = data.draw(st.lists(st.sampled_from(pool), unique=True))
    first = find_videos([folder / name for name in earlier], False, folder / "out") if earlier else []
    split = records({video.name: video.path for video in first})
    inputs = [folder, folder / "d"] if data.draw(st.booleans()) else [folder]
    expected = find_videos(inputs, True, folder / "out", split)
    done = data.draw(st.lists(st.sampled_from(expected), unique=True))
    late = find_videos(inputs, True, folder / "out", split | records({v.name: v.path for v in done}))
    assert late == expected
    assert len({video.name for video in late} | set(split)) == len({*late, *first})


@pytest.mark.parametrize(
    ("given", "message"),
    [("nowhere.mp4", "nowhere.mp4: no such video or folder"), (".", "no video in it")],
)
def test_what_is_not_there_is_told(tmp_path: Path, given: str, message: str) -> None:
    touch(tmp_path, "deep/a.mp4")
    with pytest.raises(InputError, match=message):
        find_videos([tmp_path / given], False, tmp_path / "out")
