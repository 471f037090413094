from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from shards.geometry import Bucket, Scale
from shards.prepare.encode import assign as assign_module
from shards.prepare.encode.assign import Failure, Rules
from shards.prepare.encode.cut import Decoded, decode
from shards.prepare.media.video import write_clip
from shards.prepare.tables.table import Row
from tests.support.clips import PALETTE, ramp, write_lossless, write_ramp


def rules(buckets: str, **changes) -> Rules:
    return Rules(Bucket.parse_list(buckets), Scale(4, 16), **changes)


def numbered(path: Path, frames: int, fps: float = 24.0, first: int = 0, every: int = 1) -> Path:
    """A clip of flat grey frames; brightness 4n at the time of the target's frame n."""
    levels = 4 * (first + every * np.arange(frames)).astype(np.uint8)
    write_clip(path, np.broadcast_to(levels[:, None, None, None], (frames, 64, 64, 3)), fps, crf=1)
    return path


def numbers(frames: np.ndarray) -> list[int]:
    return (frames.mean(axis=(1, 2, 3)) / 4).round().astype(int).tolist()


def windows(found: list[Decoded | Failure]) -> list[Decoded]:
    assert all(isinstance(entry, Decoded) for entry in found), found
    return [entry for entry in found if isinstance(entry, Decoded)]


@pytest.mark.parametrize("mode", ["center", "random"])
def test_clip_and_references_are_cut_at_the_same_place(tmp_path: Path, mode: str) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_ramp(tmp_path / name, 9, 128, 64)
    write_clip(tmp_path / "c.png", ramp(9, 128, 64, PALETTE[0])[:1], 1)
    references = (tmp_path / "b.mp4", tmp_path / "c.png")
    lefts = set()
    for key in ("k1", "k2", "k3"):
        row = Row(key, "", "a.mp4", tmp_path / "a.mp4", references)
        (clip,) = windows(list(decode(row, rules("64x64x9"), 7, mode)))
        assert clip.target.shape == clip.references[0].shape == (9, 64, 64, 3)
        assert clip.references[1].shape == (1, 64, 64, 3)
        for reference in clip.references:
            assert np.abs(clip.target[0].astype(int) - reference[0]).max() < 12
        (again,) = windows(list(decode(row, rules("64x64x9"), 7, mode)))
        assert np.array_equal(clip.target, again.target)
        lefts.add(int(clip.target[0, :, 0].sum()))
    assert len(lefts) == (1 if mode == "center" else 3)


def test_references_are_cut_at_the_same_time(tmp_path: Path) -> None:
    """One reference has the clip's rate, one half of it, one is a picture."""
    row = Row(
        "k",
        "",
        "a.mp4",
        numbered(tmp_path / "a.mp4", 58),
        (
            numbered(tmp_path / "same.mp4", 58),
            numbered(tmp_path / "half.mp4", 29, 12.0, every=2),
            numbered(tmp_path / "picture.png", 1, first=33),
        ),
    )
    found = windows(list(decode(row, rules("64x64x9", windows=None), 7)))
    starts = [clip.window.start for clip in found]
    assert starts == [0, 12, 24, 36, 48]
    for start, clip in zip(starts, found, strict=True):
        same, half, picture = clip.references
        assert numbers(clip.target) == numbers(same) == list(range(start, start + 9))
        assert numbers(half) == list(range(start, start + 9, 2))
        assert numbers(picture) == [33]
        assert clip.fps == 24.0


def test_windows_are_cut_at_random_places_of_their_own(tmp_path: Path) -> None:
    row = Row("k", "", "a.mp4", write_ramp(tmp_path / "a.mp4", 30, 256, 64))
    found = windows(list(decode(row, rules("64x64x9", windows=3), 7, "random")))
    shades = [clip.target[0, :, 0, 0].mean() / 220 - 0.2 * clip.window.start / 29 for clip in found]
    places = [round((shade - 0.4) / 0.4 * 255) for shade in shades]
    assert len({place // 8 for place in places}) == 3
    assert all(0 <= place <= 192 + 4 for place in places)


def test_references_can_be_smaller(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4"):
        write_ramp(tmp_path / name, 9, 96, 64)
    row = Row("k", "", "a.mp4", tmp_path / "a.mp4", (tmp_path / "b.mp4",))
    (clip,) = windows(list(decode(row, rules("64x64x9"), 7, reference_downscale=2)))
    assert clip.references[0].shape == (9, 32, 32, 3)
    small = clip.target[:, ::2, ::2].astype(int)
    assert np.abs(small - clip.references[0]).mean() < 3


def test_a_clip_that_breaks_off_gives_the_windows_before_and_a_reason(tmp_path: Path) -> None:
    """Its header promises all frames: the second half of the data is gone."""
    path = tmp_path / "a.mp4"
    noise = np.random.default_rng(0).integers(0, 255, (60, 64, 64, 3), dtype=np.uint8)
    write_clip(path, noise, 24)
    data = path.read_bytes()
    mdat, moov = data.index(b"mdat") - 4, data.index(b"moov") - 4
    assert mdat < moov
    half = (mdat + moov) // 2
    path.write_bytes(data[:half] + bytes(moov - half) + data[moov:])
    found = list(decode(Row("k", "", "a.mp4", path), rules("64x64x9", windows=None), 7))
    assert len(windows(found[:-1])) >= 1
    failure = found[-1]
    assert isinstance(failure, Failure)
    assert failure.source == "a.mp4"
    assert "frames" in failure.reason


@pytest.mark.parametrize(
    ("buckets", "found"),
    [
        ("64x64x5,64x64x9,64x64x17", ["64x64x9"]),
        ("64x64x1,64x64x17", ["only 12 of 17 frames can be decoded"]),
    ],
)
def test_a_clip_that_ends_before_its_header_says_goes_to_a_bucket_that_it_fills(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buckets: str, found: list[str]
) -> None:
    path = numbered(tmp_path / "a.mp4", 12)
    real = assign_module.probe
    monkeypatch.setattr(assign_module, "probe", lambda file: real(file)._replace(frames=40))
    row = Row("k", "", "a.mp4", path)
    entries = list(decode(row, rules(buckets), 7))
    assert [
        str(entry.clip.bucket) if isinstance(entry, Decoded) else entry.reason for entry in entries
    ] == found
    if isinstance(entries[0], Decoded):
        assert entries[0].clip.info.frames == 12
        assert numbers(entries[0].target) == list(range(9))


def test_a_broken_reference_takes_its_clip_with_it(tmp_path: Path) -> None:
    write_ramp(tmp_path / "a.mp4", 9)
    (tmp_path / "r.mp4").write_bytes(b"no")
    row = Row("k", "", "a.mp4", tmp_path / "a.mp4", (tmp_path / "r.mp4",))
    assert list(decode(row, rules("64x64x9"), 7)) == [
        Failure("a.mp4", "its reference r.mp4: Invalid data found when processing input")
    ]


def test_a_recording_of_variable_rate_has_the_rate_of_its_window(tmp_path: Path) -> None:
    times = [0, 50, 100, 150, 200, 400, 600, 800, 1000, 1200]
    path = write_lossless(tmp_path / "a.mkv", ramp(10, 64, 64, PALETTE[0]), times)
    found = windows(list(decode(Row("k", "", "a", path), rules("64x64x5", windows=None), 7)))
    assert [clip.fps for clip in found] == pytest.approx([20.0, 5.0])
