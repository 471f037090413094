from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.errors import InputError
from shards.geometry import Bucket, Scale
from shards.prepare.encode.assign import (
    Clip,
    Failure,
    Rules,
    Window,
    assign,
    check_buckets,
    choose_bucket,
    starts,
)
from shards.prepare.media.video import ClipInfo
from shards.prepare.tables.table import Row
from tests.support.clips import write_ramp

BUCKETS = Bucket.parse_list("64x64x1,64x64x9,96x64x9,64x96x9,128x96x17,128x128x17,512x512x17")
SCALE = Scale(4, 16)


@pytest.mark.parametrize(
    ("frames", "width", "height", "bucket"),
    [
        (1, 4000, 3000, "64x64x1"),
        (8, 64, 64, "64x64x1"),
        (9, 64, 64, "64x64x9"),
        (16, 1920, 1080, "96x64x9"),
        (16, 1080, 1920, "64x96x9"),
        (17, 96, 64, "128x96x17"),
        (400, 640, 480, "128x96x17"),
        (40, 130, 130, "128x128x17"),
        (40, 1000, 1000, "512x512x17"),
    ],
)
def test_a_bucket_keeps_most_of_picture_and_time_and_then_is_near_in_area(
    frames: int, width: int, height: int, bucket: str
) -> None:
    assert str(choose_bucket(ClipInfo(frames, width, height, 24.0), BUCKETS)) == bucket


@given(st.integers(1, 40), st.integers(16, 2000), st.integers(16, 2000), st.permutations(BUCKETS))
def test_choice_does_not_depend_on_the_order_of_buckets(
    frames: int, width: int, height: int, shuffled: list[Bucket]
) -> None:
    info = ClipInfo(frames, width, height, 24.0)
    chosen = choose_bucket(info, BUCKETS)
    assert chosen is not None
    assert chosen == choose_bucket(info, shuffled)
    assert chosen.frames <= frames


@pytest.mark.parametrize(
    ("frames", "width", "height", "bucket"),
    [
        (100, 448, 768, "448x768x89"),  # upright: two thirds of the picture for 8 frames
        (100, 768, 448, "768x448x97"),
        (100, 512, 512, "768x448x97"),  # 0.583 of the picture in both: the longer one
        (90, 768, 448, "448x768x89"),  # a third of 89 frames is more than 25 whole ones
        (88, 768, 448, "768x448x25"),
    ],
)
def test_picture_and_time_are_weighed(frames: int, width: int, height: int, bucket: str) -> None:
    buckets = Bucket.parse_list("768x448x97,448x768x89,768x448x25")
    assert str(choose_bucket(ClipInfo(frames, width, height, 24.0), buckets)) == bucket


def kept(info: ClipInfo, bucket: Bucket) -> float:
    """Pixels of the clip that are in the sample, in frames: all that is left of it when it is cut to shape."""
    scale = max(bucket.width / info.width, bucket.height / info.height)
    seen = (bucket.width / scale) * (bucket.height / scale)
    return seen / (info.width * info.height) * bucket.frames


@given(
    st.integers(1, 200),
    st.integers(16, 2000),
    st.integers(16, 2000),
    st.lists(
        st.builds(
            Bucket,
            *[st.integers(1, 30).map(lambda n: 32 * n)] * 2,
            st.integers(0, 20).map(lambda n: 8 * n + 1),
        ),
        min_size=1,
        max_size=6,
    ),
)
def test_no_other_bucket_would_keep_more(frames: int, width: int, height: int, buckets: list[Bucket]) -> None:
    info = ClipInfo(frames, width, height, 24.0)
    chosen = choose_bucket(info, buckets)
    filled = [bucket for bucket in buckets if bucket.frames <= frames]
    assert (chosen is None) == (not filled)
    if chosen is not None:
        assert kept(info, chosen) >= max(kept(info, bucket) for bucket in filled) - 1e-5


def test_a_clip_that_fills_no_bucket_has_none() -> None:
    assert choose_bucket(ClipInfo(8, 64, 64, 24.0), BUCKETS[1:]) is None


@pytest.mark.parametrize("bucket", ["64x64x8", "72x64x9", "64x40x9"])
def test_buckets_must_fit_the_vae(bucket: str) -> None:
    check_buckets(Bucket.parse_list("64x64x9,96x64x13"), SCALE)
    with pytest.raises(InputError, match=f"^--buckets {bucket} does not fit the VAE"):
        check_buckets(Bucket.parse_list(f"64x64x9,{bucket}"), SCALE)


@given(
    frames=st.integers(1, 400),
    length=st.integers(1, 60),
    most=st.one_of(st.none(), st.integers(1, 12)),
    step=st.integers(1, 4),
)
def test_windows_do_not_overlap_and_span_the_clip(
    frames: int, length: int, most: int | None, step: int
) -> None:
    frames = max(frames, length)
    found = starts(frames, length, most, step)
    assert found[0] == 0
    assert all(start % step == 0 for start in found)
    assert found[-1] + length <= frames
    assert all(after - before >= length for before, after in pairwise(found))
    assert most is None or len(found) <= most
    if len(found) > 1:
        assert found[-1] + length > frames - step, "the last window ends with the clip"
    if most is None:
        assert (len(found) + 1) * -(-length // step) * step > frames - step, "another one would not fit"
    gaps = [after - before for before, after in pairwise(found)]
    assert not gaps or max(gaps) - min(gaps) <= step, "evenly spread"


def row(folder: Path, name: str, *references: str) -> Row:
    paths = tuple(folder / reference for reference in references)
    return Row(name.replace(".", "_"), "", name, folder / name, paths)


def rules(buckets: str, **changes) -> Rules:
    return Rules(Bucket.parse_list(buckets), SCALE, **changes)


@pytest.mark.parametrize(
    ("name", "references", "reason"),
    [
        ("good.mp4", [], None),
        ("good.mp4", ["good.mp4"], None),
        ("good.mp4", ["good.mp4", "still.png"], None),
        ("short.mp4", [], "5 frames, the shortest video bucket 64x64x9 needs 9"),
        ("still.png", [], "a picture needs a bucket of 1 frame: add for example 64x64x1"),
        ("broken.mp4", [], "Invalid data found when processing input"),
        ("empty.mp4", [], "the file is empty"),
        ("empty.png", [], "cannot identify image file '{}/empty.png'"),
        ("good.mp4", ["short.mp4"], "its reference short.mp4: 5 frames, the clip has 12"),
        ("good.mp4", ["good.mp4", "empty.mp4"], "its reference empty.mp4: the file is empty"),
    ],
)
def test_a_row_becomes_a_clip_or_a_reason(
    tmp_path: Path, name: str, references: list[str], reason: str | None
) -> None:
    write_ramp(tmp_path / "good.mp4", 12)
    write_ramp(tmp_path / "short.mp4", 5)
    write_ramp(tmp_path / "still.png", 1)
    (tmp_path / "broken.mp4").write_bytes(b"no")
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "empty.png").touch()
    found = assign(row(tmp_path, name, *references), rules("64x64x9"))
    if reason is None:
        assert isinstance(found, Clip)
        assert found.info == ClipInfo(12, 64, 64, 24.0)
        assert found.windows == (Window("good_mp4", 0),)
        assert [reference.path.name for reference in found.references] == references
    else:
        assert found == Failure(name, reason.format(tmp_path))


@pytest.mark.parametrize(
    ("buckets", "short_videos", "bucket"),
    [
        ("64x64x1,64x64x9", "leave", None),
        ("64x64x1,64x64x9", "picture", "64x64x1"),
        ("64x64x1", "leave", "64x64x1"),
        ("64x64x9", "picture", None),
    ],
)
def test_a_short_video_becomes_a_picture_only_where_that_was_asked_for(
    tmp_path: Path, buckets: str, short_videos: str, bucket: str | None
) -> None:
    write_ramp(tmp_path / "short.mp4", 5)
    found = assign(row(tmp_path, "short.mp4"), rules(buckets, short_videos=short_videos))
    if bucket is None:
        assert found == Failure("short.mp4", "5 frames, the shortest video bucket 64x64x9 needs 9")
    else:
        assert isinstance(found, Clip)
        assert str(found.bucket) == bucket


def test_pictures_and_videos_of_one_frame_go_to_buckets_of_one_frame(tmp_path: Path) -> None:
    for name in ("still.png", "one.mp4", "one.gif"):
        write_ramp(tmp_path / name, 1) if name != "one.gif" else _gif(tmp_path / name)
        found = assign(row(tmp_path, name), rules("64x64x1,64x64x9"))
        assert isinstance(found, Clip), found
        assert (str(found.bucket), found.info.fps) == ("64x64x1", 1.0)


def _gif(path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (64, 64), (200, 10, 10)).save(path)


@pytest.mark.parametrize(
    ("windows", "expected"),
    [
        (1, {"a": 0}),
        (2, {"a-w0": 0, "a-w1": 21}),
        (3, {"a-w0": 0, "a-w1": 10, "a-w2": 21}),
        (9, {"a-w0": 0, "a-w1": 10, "a-w2": 21}),
        (None, {"a-w0": 0, "a-w1": 10, "a-w2": 21}),
    ],
)
def test_windows_have_keys_of_their_own_where_more_than_one_was_asked_for(
    tmp_path: Path, windows: int | None, expected: dict[str, int]
) -> None:
    write_ramp(tmp_path / "a.mp4", 30)
    found = assign(Row("a", "", "a.mp4", tmp_path / "a.mp4"), rules("64x64x9", windows=windows))
    assert isinstance(found, Clip)
    assert dict(found.windows) == expected


def test_windows_start_where_a_slower_reference_has_a_frame(tmp_path: Path) -> None:
    write_ramp(tmp_path / "a.mp4", 33, fps=24)
    write_ramp(tmp_path / "r.mp4", 17, fps=12)
    found = assign(row(tmp_path, "a.mp4", "r.mp4"), rules("64x64x9", windows=None))
    assert isinstance(found, Clip)
    assert [window.start for window in found.windows] == [0, 12, 24]
    assert [found.references[0].start(window.start) for window in found.windows] == [0, 6, 12]
