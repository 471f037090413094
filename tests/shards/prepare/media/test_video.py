from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from shards.prepare.media.video import ClipError, ClipInfo, cover, probe, read_clip, read_windows, write_clip
from tests.support.clips import PALETTE, filmed, ramp, write_lossless, write_ramp
from tests.support.footage import scene, turn, write_changing_size, write_recording, write_wide_pixels


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but for lossy compression."""
    return found.shape == expected.shape and np.abs(found.astype(int) - expected).mean() < 4


@pytest.mark.parametrize(
    ("frames", "width", "height", "fps"), [(9, 64, 64, 24.0), (12, 96, 64, 8.0), (5, 64, 96, 30000 / 1001)]
)
def test_written_clip_reads_back(tmp_path: Path, frames: int, width: int, height: int, fps: float) -> None:
    path = write_ramp(tmp_path / "a.mp4", frames, width, height, fps=fps)
    assert probe(path) == ClipInfo(frames, width, height, pytest.approx(fps, rel=1e-9))
    assert close(read_clip(path, frames), ramp(frames, width, height, PALETTE[0]))
    assert close(read_clip(path, 3), ramp(frames, width, height, PALETTE[0])[:3])


@pytest.mark.parametrize(
    ("name", "expected"), [("bikes", (250, 640, 272, 25.0)), ("bigbuckbunny", (132, 1280, 720, 25.0))]
)
def test_filmed_clips(name: str, expected: tuple[int, int, int, float]) -> None:
    assert probe(filmed(name)) == expected
    frames = read_clip(filmed(name), 9, cover(96, 64))
    assert frames.shape == (9, 64, 96, 3)
    assert frames.dtype == np.uint8
    assert 30 < frames.mean() < 220
    assert frames.std() > 20
    assert 0 < np.abs(np.diff(frames.astype(int), axis=0)).mean() < 20


def test_length_is_counted_where_the_header_has_none(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    write_clip(path, ramp(7, 64, 64, PALETTE[0]), 24)
    with av.open(str(path)) as container:
        assert container.streams.video[0].frames == 0
    assert probe(path).frames == 7


def write_gif(path: Path, frames: int, durations: int | list[int] = 100) -> Path:
    pictures = [Image.fromarray(frame) for frame in ramp(frames, 51, 33, PALETTE[0])]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations)
    return path


def test_gifs_are_clips_and_one_of_one_frame_is_a_picture(tmp_path: Path) -> None:
    assert probe(write_gif(tmp_path / "many.gif", 7)) == ClipInfo(7, 51, 33, 10.0)
    assert probe(write_gif(tmp_path / "one.gif", 1)) == ClipInfo(1, 51, 33, 1.0)
    assert read_clip(tmp_path / "many.gif", 7).shape == (7, 33, 51, 3)
    assert read_clip(tmp_path / "one.gif", 1).shape == (1, 33, 51, 3)


def test_sizes_may_be_odd(tmp_path: Path) -> None:
    frames = ramp(5, 51, 33, PALETTE[1])
    path = write_lossless(tmp_path / "a.mkv", frames, [40 * number for number in range(5)], 25)
    assert probe(path) == ClipInfo(5, 51, 33, 25.0)
    assert np.array_equal(read_clip(path, 5), frames)
    assert read_clip(path, 5, cover(64, 32)).shape == (5, 32, 64, 3)


def test_windows_of_a_recording_of_variable_rate_have_rates_of_their_own(tmp_path: Path) -> None:
    frames = ramp(10, 32, 32, PALETTE[1])
    path = write_lossless(tmp_path / "a.mkv", frames, [0, 50, 100, 150, 200, 400, 600, 800, 1000, 1200])
    pieces = list(read_windows(path, [0, 5], 5, [None, None]))
    assert [piece.fps for piece in pieces] == pytest.approx([20.0, 5.0])


def numbered(frames: int) -> np.ndarray:
    """Flat grey frames whose brightness is four times their number."""
    return np.broadcast_to(4 * np.arange(frames, dtype=np.uint8)[:, None, None, None], (frames, 32, 32, 3))


def numbers(frames: np.ndarray) -> list[int]:
    return (frames.mean(axis=(1, 2, 3)) / 4).round().astype(int).tolist()


@given(
    st.integers(1, 8).flatmap(
        lambda length: st.tuples(st.just(length), st.lists(st.integers(0, 5), min_size=1, max_size=4))
    )
)
def test_windows_hold_the_frames_asked_for(long_clip: Path, lengths_and_gaps: tuple[int, list[int]]) -> None:
    length, gaps = lengths_and_gaps
    starts = [sum(gaps[: number + 1]) + number * length for number in range(len(gaps))]
    pieces = list(read_windows(long_clip, starts, length, [None] * len(starts)))
    assert [numbers(piece.frames) for piece in pieces] == [
        list(range(start, start + length)) for start in starts
    ]


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clips") / "a.mp4"
    write_clip(path, numbered(60), 24, crf=1)
    return path


def test_each_window_has_a_fit_of_its_own(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 9, 64, 32)
    whole = read_clip(path, 9)
    first, second = read_windows(path, [0, 5], 4, [cover(32, 32, (0.0, 0.5)), cover(32, 32, (1.0, 0.5))])
    assert np.array_equal(first.frames, whole[:4, :, :32])
    assert np.array_equal(second.frames, whole[5:, :, 32:])


def test_windows_before_a_break_are_had_and_the_break_is_told(long_clip: Path) -> None:
    windows = read_windows(long_clip, [0, 50, 58], 5, [None] * 3)
    assert numbers(next(windows).frames) == [0, 1, 2, 3, 4]
    assert numbers(next(windows).frames) == [50, 51, 52, 53, 54]
    with pytest.raises(ClipError, match="only 60 of 63 frames can be decoded"):
        next(windows)


def test_an_impossible_rate_is_told(tmp_path: Path) -> None:
    write_clip(tmp_path / "a.mp4", ramp(3, 32, 32, PALETTE[0]), 2000)
    with pytest.raises(ClipError, match="a frame rate of 2000 in its header"):
        probe(tmp_path / "a.mp4")


def test_a_recording_whose_header_names_the_clock_has_the_rate_of_its_frames(tmp_path: Path) -> None:
    path = write_recording(tmp_path / "a.webm", ramp(31, 64, 48, PALETTE[0]), [33 * k for k in range(31)])
    with av.open(str(path)) as container:
        assert container.streams.video[0].average_rate == 1000, "or the test shows nothing"
    assert probe(path) == ClipInfo(31, 64, 48, pytest.approx(1000 / 33))


def test_a_recording_that_changes_its_size_keeps_that_of_its_first_frame(tmp_path: Path) -> None:
    path = write_changing_size(tmp_path / "a.ts", [(64, 48), (128, 96)], 6)
    assert probe(path) == ClipInfo(12, 64, 48, 24.0)
    frames = read_clip(path, 12)
    assert frames.shape == (12, 48, 64, 3)
    assert np.abs(frames[6:].astype(int) - scene(1, 6, 64, 48)).mean() < 10, "scaled, not cut"


def test_upright_clip_of_a_phone_is_turned(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 2, 96, 64)
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40
    # A quarter turn clockwise, as 16.16 fixed point (2.30 in the last column).
    struct.pack_into(">9i", data, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert probe(path)[:3] == (2, 64, 96)
    assert close(read_clip(path, 2), np.rot90(ramp(2, 96, 64, PALETTE[0]), -1, axes=(1, 2)))


def test_picture_is_one_frame_rgb_and_upright(tmp_path: Path) -> None:
    upright = ramp(1, 48, 32, PALETTE[3])[0]
    turned = Image.fromarray(np.rot90(upright))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(tmp_path / "a.png", exif=exif)
    assert probe(tmp_path / "a.png") == ClipInfo(1, 48, 32, 1.0)
    assert np.array_equal(read_clip(tmp_path / "a.png", 1), upright[None])
    Image.fromarray(upright).convert("L").save(tmp_path / "grey.JPG")
    assert read_clip(tmp_path / "grey.JPG", 1).shape == (1, 32, 48, 3)


@pytest.mark.parametrize(
    ("pixel", "turned", "size"),
    [(Fraction(2), False, (128, 48)), (Fraction(1, 2), False, (64, 96)), (Fraction(2), True, (48, 128))],
)
def test_the_size_is_that_of_square_pixels(
    tmp_path: Path, pixel: Fraction, turned: bool, size: tuple[int, int]
) -> None:
    path = write_wide_pixels(tmp_path / "a.mp4", ramp(3, 64, 48, PALETTE[3]), pixel)
    path = turn(path) if turned else path
    assert probe(path)[1:3] == size
    assert read_clip(path, 3).shape == (3, *size[::-1], 3)


def test_written_clips_say_how_their_colours_are_meant(tmp_path: Path) -> None:
    """Players take files of high definition that do not say it for another kind."""
    path = write_ramp(tmp_path / "a.mp4", 2, 1280, 720)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.colorspace, frame.color_range) == (6, 1), "BT.601, limited"


def test_pictures_of_16_bits_keep_their_whole_range(tmp_path: Path) -> None:
    depth = np.linspace(0, 65535, 64 * 48).astype(np.uint16).reshape(48, 64)
    for name in ("a.png", "a.tif"):
        Image.fromarray(depth).save(tmp_path / name)
        assert np.array_equal(read_clip(tmp_path / name, 1)[0], np.repeat(depth[..., None] // 256, 3, -1))


@pytest.mark.parametrize("kind", [np.float32, np.int32])
def test_pictures_of_an_unknown_range_are_refused(tmp_path: Path, kind: type) -> None:
    Image.fromarray(np.ones((4, 4), kind)).save(tmp_path / "a.tif")
    with pytest.raises(ClipError) as error:
        probe(tmp_path / "a.tif")
    assert error.value.reason == "32 bits a value, of an unknown range: save it with 8 or 16 bits"


def test_what_is_transparent_lies_on_white(tmp_path: Path) -> None:
    pixels = np.array([[[200, 0, 0, 255], [200, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    expected = [[200, 0, 0], [255, 255, 255], [204, 204, 204]]
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert read_clip(tmp_path / "a.png", 1)[0, 0].tolist() == expected
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.height, stream.width, stream.pix_fmt = 1, 3, "bgra"
        for _ in range(2):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgba")))
        container.mux(stream.encode())
    assert read_clip(tmp_path / "a.mkv", 2)[1, 0].tolist() == expected
    Image.fromarray(pixels).convert("P").save(tmp_path / "b.png", transparency=0)
    with Image.open(tmp_path / "b.png") as palette:
        assert palette.has_transparency_data
    assert (read_clip(tmp_path / "b.png", 1)[0, 0] == 255).all(axis=-1).any()


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
@pytest.mark.parametrize("content", [b"", b"not a video", bytes(5000)])
def test_what_is_not_a_clip_is_named(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    for use in (probe, lambda path: read_clip(path, 1)):
        with pytest.raises(ClipError, match=name) as error:
            use(path)
        assert error.value.path == path
        assert error.value.reason
    if not content and name == "a.mp4":
        with pytest.raises(ClipError, match="the file is empty"):
            probe(path)


def test_sound_alone_is_not_a_clip(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with pytest.raises(ClipError, match="no video stream"):
        probe(path)


def test_clip_that_breaks_off_is_an_error_not_a_shorter_clip(tmp_path: Path) -> None:
    path = write_ramp(tmp_path / "a.mp4", 9)
    with pytest.raises(ClipError, match="9 of 10 frames"):
        read_clip(path, 10)
    write_ramp(tmp_path / "a.png", 1)
    with pytest.raises(ClipError, match="only 1 of 2"):
        read_clip(tmp_path / "a.png", 2)


def test_frames_of_the_right_size_are_not_resampled() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=np.uint8)
    assert np.array_equal(cover(50, 40)(frame), frame)
    assert np.array_equal(cover(40, 40)(frame), frame[:, 5:45])
    assert np.array_equal(cover(50, 30, (0.5, 1.0))(frame), frame[10:])
    assert np.array_equal(cover(41, 40, (0.0, 0.5))(frame), frame[:, :41])


sides = st.integers(1, 90)
fractions = st.floats(0, 1, exclude_max=True)


@given(sides, sides, sides, sides, st.tuples(fractions, fractions))
def test_any_frame_covers_any_bucket(
    w: int, h: int, width: int, height: int, at: tuple[float, float]
) -> None:
    """The result has the bucket's size and stays within the values of the frame: nothing is padded."""
    frame = np.full((h, w, 3), 200, np.uint8)
    fitted = cover(width, height, at)(frame)
    assert fitted.shape == (height, width, 3)
    assert (fitted == 200).all()


def test_aspect_is_kept() -> None:
    frame = np.zeros((60, 120, 3), np.uint8)
    frame[20:40, 50:70] = 255
    fitted = cover(30, 30)(frame)[..., 0] > 127
    assert fitted.any(axis=0).sum() == fitted.any(axis=1).sum() == 10
