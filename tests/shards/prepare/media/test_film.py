"""Videos frame by frame: what is written reads back, upright, at its rate; damage is told."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.prepare.media.film import reading, writing
from shards.prepare.media.video import ClipError, probe, read_clip
from tests.support.clips import PALETTE, filmed, ramp, write_ramp
from tests.support.footage import damage, turn, write_changing_size, write_scenes, write_wide_pixels


def copy(source: Path, target: Path, crf: int = 4) -> Path:
    with reading(source) as film, writing(target, film.rate, crf, film.pixel) as append:
        for frame in film.frames:
            append(frame)
    return target


def close(found: np.ndarray, expected: np.ndarray, most: float = 4) -> bool:
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < most


@pytest.mark.parametrize("rate", [Fraction(24), Fraction(30000, 1001), Fraction(12345, 677)])
def test_every_frame_is_read_and_written_at_the_same_rate(tmp_path: Path, rate: Fraction) -> None:
    with writing(tmp_path / "a.mp4", rate, 4) as append:
        for frame in ramp(11, 64, 48, PALETTE[1]):
            append(frame)
    with reading(copy(tmp_path / "a.mp4", tmp_path / "b.mp4")) as film:
        assert film.rate == rate
        assert film.length == 11
        frames = np.stack([*map(film.picture, film.frames)])
    assert close(frames, ramp(11, 64, 48, PALETTE[1]))


@settings(max_examples=12, deadline=None)
@given(width=st.integers(1, 70), height=st.integers(1, 70), frames=st.integers(1, 4))
def test_any_size_is_kept(
    tmp_path_factory: pytest.TempPathFactory, width: int, height: int, frames: int
) -> None:
    path = tmp_path_factory.mktemp("film") / "a.mp4"
    with writing(path, Fraction(24), 4) as append:
        for frame in ramp(frames, width, height, PALETTE[2]):
            append(frame)
    assert read_clip(path, frames).shape == (frames, height, width, 3)
    assert probe(path).frames == frames


def test_the_same_frames_give_the_same_bytes(tmp_path: Path) -> None:
    first, second = (copy(filmed("bikes"), tmp_path / name, crf=30) for name in ("a.mp4", "b.mp4"))
    assert first.read_bytes() == second.read_bytes()


def test_decoded_frames_keep_their_colours(tmp_path: Path) -> None:
    colours = ramp(3, 64, 48, PALETTE[0])
    with av.open(str(tmp_path / "a.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.colorspace = av.video.reformatter.Colorspace.ITU709
        stream.options = {"crf": "4"}
        for frame in colours:
            picture = av.VideoFrame.from_ndarray(frame, format="rgb24")
            picture = picture.reformat(format="yuv420p", dst_colorspace="ITU709")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert close(read_clip(tmp_path / "a.mp4", 3), colours)
    assert close(read_clip(copy(tmp_path / "a.mp4", tmp_path / "b.mp4"), 3), colours)


def test_a_turned_video_is_written_upright(tmp_path: Path) -> None:
    source = turn(write_ramp(tmp_path / "a.mp4", 3, 96, 64))
    copied = copy(source, tmp_path / "b.mp4")
    assert probe(copied)[:3] == (3, 64, 96)
    with av.open(str(copied)) as container:
        assert next(container.decode(video=0)).rotation == 0
    assert close(read_clip(copied, 3), np.rot90(ramp(3, 96, 64, PALETTE[0]), -1, axes=(1, 2)))


@pytest.mark.parametrize(("turned", "size"), [(False, (128, 48)), (True, (48, 128))])
def test_pixels_become_square(tmp_path: Path, turned: bool, size: tuple[int, int]) -> None:
    path = write_wide_pixels(tmp_path / "a.mp4", ramp(3, 64, 48, PALETTE[3]), Fraction(2))
    copied = copy(turn(path) if turned else path, tmp_path / "b.mp4")
    assert probe(copied)[1:3] == size


def test_pixels_higher_than_wide_become_square_too(tmp_path: Path) -> None:
    path = write_wide_pixels(tmp_path / "a.mp4", ramp(3, 64, 48, PALETTE[3]), Fraction(1, 2))
    assert probe(copy(path, tmp_path / "b.mp4"))[1:3] == (64, 96)


def test_pixels_a_dozen_times_as_wide_as_high_are_nonsense(tmp_path: Path) -> None:
    path = write_wide_pixels(tmp_path / "a.mp4", ramp(3, 64, 48, PALETTE[3]), Fraction(12))
    with pytest.raises(ClipError, match="pixels 12 times as wide as high in its header"), reading(path):
        pass


def test_a_recording_that_changes_its_size_is_written_in_that_of_its_first_frame(tmp_path: Path) -> None:
    path = copy(write_changing_size(tmp_path / "a.ts", [(64, 48), (128, 96)], 6), tmp_path / "b.mp4")
    assert probe(path) == (12, 64, 48, 24.0)


def test_damage_is_told_after_the_frames_before_it(tmp_path: Path) -> None:
    path = damage(write_scenes(tmp_path / "a.mp4", [60]), 40)
    seen: list[av.VideoFrame] = []
    with reading(path) as film, pytest.raises(ClipError, match=r"a\.mp4: after \d+ frames: ") as error:
        seen.extend(film.frames)
    assert 0 < len(seen) <= 40
    assert f"after {len(seen)} frames" in error.value.reason


@pytest.mark.parametrize("content", [b"", b"nothing", bytes(3000)])
def test_what_is_no_video_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.mp4").write_bytes(content)
    with pytest.raises(ClipError, match=r"a\.mp4"), reading(tmp_path / "a.mp4") as film:
        list(film.frames)
    with pytest.raises(ClipError, match="No such file"), reading(tmp_path / "b.mp4"):
        pass


def test_a_full_disk_is_not_the_frames_fault(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to("/dev/full")

    def write() -> None:
        with writing(tmp_path / "a.mp4", Fraction(24), 4) as append:
            append(ramp(1, 64, 48, PALETTE[0])[0])

    with pytest.raises(OSError, match="No space left on device") as error:
        write()
    assert error.value.filename == str(tmp_path / "a.mp4")


def test_a_file_is_whole_or_gone(tmp_path: Path) -> None:
    def write() -> None:
        with writing(tmp_path / "a.mp4", Fraction(24), 4) as append:
            append(ramp(1, 64, 48, PALETTE[0])[0])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert not list(tmp_path.iterdir())
