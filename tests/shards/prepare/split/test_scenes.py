"""Scenes are found at the exact frames of their cuts, by every detector; options that make no sense are refused."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.errors import InputError
from shards.prepare.media.video import ClipError
from shards.prepare.split.scenes import DETECTORS, Length, Scene, SceneOptions, check, find_scenes
from tests.support.clips import filmed, write_lossless, write_ramp
from tests.support.footage import damage, scene, write_fades, write_scenes

LENGTHS = (20, 33, 17, 40)
BOUNDS = [(0, 20), (20, 53), (53, 70), (70, 110)]


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes") / "a.mp4", LENGTHS)


@pytest.fixture(scope="module")
def fading(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_fades(tmp_path_factory.mktemp("scenes") / "a.mp4", (20, 10, 33, 6, 17))


def bounds(path: Path, options: SceneOptions) -> list[tuple[int, int]]:
    return [(scene.first, scene.end) for scene in find_scenes(path, options).scenes]


@pytest.mark.parametrize("detector", sorted(set(DETECTORS) - {"threshold"}))
def test_cuts_are_found_at_their_frames(video: Path, detector: str) -> None:
    assert bounds(video, SceneOptions(detector)) == BOUNDS


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        (None, [(0, 25), (25, 66), (66, 86)]),
        (-1.0, [(0, 20), (20, 63), (63, 86)]),
        (1.0, [(0, 30), (30, 69), (69, 86)]),
    ],
)
def test_fades_are_cut_where_their_bias_says(
    fading: Path, bias: float | None, expected: list[tuple[int, int]]
) -> None:
    assert bounds(fading, SceneOptions("threshold", fade_bias=bias)) == expected


@settings(max_examples=6, deadline=None)
@given(lengths=st.lists(st.integers(16, 30), min_size=1, max_size=4))
def test_scenes_follow_each_other_without_a_gap(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int]
) -> None:
    path = write_scenes(tmp_path_factory.mktemp("scenes") / "a.mp4", lengths)
    found = bounds(path, SceneOptions())
    assert [end - first for first, end in found] == lengths
    assert all(before[1] == after[0] for before, after in pairwise(found))


@pytest.mark.parametrize("detector", DETECTORS)
def test_pyscenedetect_finds_the_same_in_filmed_clips(detector: str) -> None:
    import scenedetect

    kinds = {
        "content": scenedetect.ContentDetector,
        "adaptive": scenedetect.AdaptiveDetector,
        "threshold": scenedetect.ThresholdDetector,
        "histogram": scenedetect.HistogramDetector,
        "hash": scenedetect.HashDetector,
    }
    manager = scenedetect.SceneManager()
    manager.add_detector(kinds[detector]())
    manager.detect_scenes(scenedetect.open_video(str(filmed("bikes")), backend="pyav"))
    expected = [(a.frame_num, b.frame_num) for a, b in manager.get_scene_list(start_in_scene=True)]
    assert bounds(filmed("bikes"), SceneOptions(detector)) == expected


def test_seconds_are_those_of_the_frames(video: Path) -> None:
    found = find_scenes(video, SceneOptions()).scenes
    assert [(scene.start_s, scene.end_s) for scene in found] == [
        pytest.approx((first / 24, end / 24)) for first, end in BOUNDS
    ]


def test_a_scene_of_another_rate_has_its_own(tmp_path: Path) -> None:
    """Cut by number of frames, timed by the file's timestamps."""
    frames = [*scene(0, 20, 64, 48), *scene(1, 20, 64, 48)]
    times = [*range(0, 1000, 50), *range(1000, 5000, 200)]

    path = write_lossless(tmp_path / "a.mkv", np.stack(frames), times, rate=20)
    first, second = find_scenes(path, SceneOptions()).scenes
    assert (first.first, first.end, second.first, second.end) == (0, 20, 20, 40)
    assert (first.start_s, first.end_s, second.start_s) == pytest.approx((0, 1, 1))
    assert first.rate(Fraction(20)) == 20
    assert float(second.rate(Fraction(20))) == pytest.approx(20 / (second.end_s - 1))
    assert second.rate(Fraction(20)) < 6


def test_a_video_without_a_cut_is_one_scene(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 30)
    for detector in ("content", "adaptive", "threshold", "histogram"):
        assert bounds(path, SceneOptions(detector)) == [(0, 30)]


@pytest.mark.parametrize(
    ("options", "expected", "left_out"),
    [
        ({"skip_start": Length(5)}, [(5, 20), (20, 53), (53, 70), (70, 110)], {}),
        ({"skip_start": Length(30)}, [(30, 53), (53, 70), (70, 110)], {}),
        ({"skip_end": Length(seconds=0.5)}, [(0, 20), (20, 53), (53, 70), (70, 98)], {}),
        ({"skip_end": Length(60)}, [(0, 20), (20, 50)], {}),
        (
            {"filter_shorter_than": Length(21)},
            [(20, 53), (70, 110)],
            {"shorter than 21 frames": 2},
        ),
        ({"filter_shorter_than": Length(seconds=1.0)}, [(20, 53), (70, 110)], {"shorter than 24 frames": 2}),
        ({"max_scenes": 3}, BOUNDS[:3], {"after the first 3": 1}),
        (
            {"filter_shorter_than": Length(33), "max_scenes": 1},
            [(20, 53)],
            {"shorter than 33 frames": 2, "after the first 1": 1},
        ),
        ({"min_scene_length": 30}, [(0, 53), (53, 110)], {}),
        ({"threshold": 255.0}, [(0, 110)], {}),
        ({"frame_skip": 1}, [(0, 20), (20, 54), (54, 70), (70, 110)], {}),
        ({"downscale": 2}, BOUNDS, {}),
        ({"luma_only": True}, BOUNDS, {}),
        ({"detector": "adaptive", "adaptive_window": 3}, BOUNDS, {}),
        ({"detector": "hash", "threshold": 1.0}, [(0, 110)], {}),
    ],
)
def test_options_choose_scenes(
    video: Path, options: dict[str, object], expected: list[tuple[int, int]], left_out: dict[str, int]
) -> None:
    found = find_scenes(video, replace(SceneOptions(), **options))  # type: ignore[arg-type]
    assert [(scene.first, scene.end) for scene in found.scenes] == expected
    assert found.left_out == left_out


def test_every_frame_is_told(video: Path) -> None:
    told: list[tuple[int, int]] = []
    find_scenes(video, SceneOptions(frame_skip=3), lambda done, total: told.append((done, total)))
    assert told == [(number, 110) for number in range(1, 111)]


def test_a_video_that_breaks_off_has_its_scenes_up_to_there(tmp_path: Path) -> None:
    path = damage(write_scenes(tmp_path / "a.mp4", LENGTHS), 90)
    found = find_scenes(path, SceneOptions())
    assert [(scene.first, scene.end) for scene in found.scenes[:3]] == BOUNDS[:3]
    assert found.scenes[3].first == 70
    assert 70 < found.scenes[3].end <= 90
    assert found.damage == f"after {found.scenes[3].end} frames: Invalid data found when processing input"


def test_nothing_left_is_the_videos_fault(video: Path) -> None:
    with pytest.raises(ClipError, match="110 frames, nothing is left after skipping"):
        find_scenes(video, SceneOptions(skip_start=Length(60), skip_end=Length(50)))


@given(st.integers(0, 10**6))
def test_lengths_in_frames(frames: int) -> None:
    assert Length.parse(f" {frames} ", "--skip-end").in_frames(Fraction(30)) == frames


@given(st.integers(0, 99), st.integers(0, 59), st.integers(0, 5999))
def test_lengths_in_seconds(hours: int, minutes: int, hundredths: int) -> None:
    seconds = 3600 * hours + 60 * minutes + hundredths / 100
    for text in (f"{seconds:.2f}s", f"{hours:02d}:{minutes:02d}:{hundredths / 100:05.2f}"):
        assert Length.parse(text, "--skip-end").seconds == pytest.approx(seconds)
        assert Length.parse(text, "--skip-end").in_frames(Fraction(24)) == round(seconds * 24)


@pytest.mark.parametrize("text", ["", "-3", "2.5", "3 s", "1:2", "00:61:00", "00:00:60", "many", "1e3s"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"give frames as 17, seconds as 2\.5s, or HH:MM:SS"):
        Length.parse(text, "--skip-end")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            SceneOptions("magic"),
            "--detector 'magic' is not known: use content, adaptive, threshold, histogram, hash",
        ),
        (SceneOptions("hash", luma_only=True), "--luma-only is for --detector content or adaptive, not hash"),
        (SceneOptions(adaptive_window=2), "--adaptive-window is for --detector adaptive, not content"),
        (SceneOptions(fade_bias=0.5), "--fade-bias is for --detector threshold, not content"),
        (SceneOptions("threshold", fade_bias=2.0), "--fade-bias 2 must be between -1 and 1"),
        (SceneOptions("hash", threshold=27), "--threshold 27: for hash it is at least 0 and at most 1"),
        (SceneOptions("adaptive", threshold=-1), "--threshold -1: for adaptive it is at least 0"),
        (SceneOptions("adaptive", adaptive_window=0), "--adaptive-window 0 must be at least 1"),
        (SceneOptions(downscale=0), "--downscale 0 must be at least 1"),
        (SceneOptions(max_scenes=0), "--max-scenes 0 must be at least 1"),
        (SceneOptions(frame_skip=-1), "--frame-skip -1 must be at least 0"),
        (SceneOptions(min_scene_length=-1), "--min-scene-length -1 must be at least 0"),
    ],
)
def test_options_that_make_no_sense(options: SceneOptions, message: str) -> None:
    with pytest.raises(InputError) as error:
        check(options)
    assert str(error.value) == message


def test_a_scene_without_times_has_the_videos_rate() -> None:
    assert Scene(0, 1, 0.0, 0.0).rate(Fraction(25)) == 25
