from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.prepare.caption.sampling import sample_frames
from shards.prepare.media.video import ClipError, write_clip
from tests.support.clips import write_ramp
from tests.support.footage import write_changing_size, write_recording


def film(path: Path, frames: int, fps: float = 24.0) -> Path:
    """A clip whose frame k is grey of shade 4 + 4k."""
    shades = 4 + 4 * np.arange(frames, dtype=np.uint8)
    write_clip(path, np.broadcast_to(shades[:, None, None, None], (frames, 32, 48, 3)), fps)
    return path


@settings(max_examples=25, deadline=None)
@given(frames=st.integers(1, 60), fps=st.sampled_from([0.5, 1.0, 3.0, 8.0, 100.0]), most=st.integers(1, 20))
def test_frames_are_spread_evenly_over_the_clip(
    tmp_path_factory: pytest.TempPathFactory, frames: int, fps: float, most: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"film_{frames}.mp4"
    sampled = sample_frames(path if path.exists() else film(path, frames), fps, most, 10_000)
    count = len(sampled.pixels)
    seconds = frames / 24 if frames > 1 else 1.0  # one frame is a picture
    assert count == max(1, min(most, frames, int(np.ceil(round(seconds * fps, 6)))))
    found = np.round((sampled.pixels.mean(axis=(1, 2, 3)) - 4) / 4)
    assert found.tolist() == [k * frames // count for k in range(count)]
    assert sampled.fps == pytest.approx(count / seconds)


def test_where_the_rate_varies_the_model_sees_what_is_on_the_screen_at_even_times(tmp_path: Path) -> None:
    """20 frames in a second, then one for 19 seconds: the header of such a recording says 1000 a second."""
    times = [*range(0, 1000, 50), 1000, 20_000]
    shades = np.repeat(np.arange(8, 228, 10, dtype=np.uint8)[:, None, None, None], 3, axis=-1)
    path = write_recording(tmp_path / "a.webm", np.tile(shades, (1, 48, 64, 1)), times)
    sampled = sample_frames(path, 1.0, 64, 10_000)
    found = np.round((sampled.pixels.mean(axis=(1, 2, 3)) - 8) / 10).astype(int).tolist()
    assert found == [0, 19, *[20] * 19]
    assert sampled.fps == pytest.approx(1.0, rel=0.01)


def test_a_recording_that_changes_its_size_has_frames_of_one(tmp_path: Path) -> None:
    path = write_changing_size(tmp_path / "a.ts", [(64, 48), (128, 96)], 12)
    assert sample_frames(path, 4.0, 64, 10_000).pixels.shape == (4, 48, 64, 3)


@pytest.mark.parametrize(
    ("size", "area", "expected"),
    [((64, 48), 10_000, (64, 48)), ((640, 360), 64 * 28 * 28, (298, 168)), ((600, 20), 784, (152, 4))],
)
def test_frames_are_scaled_down_to_an_area_with_even_sides(
    tmp_path: Path, size: tuple[int, int], area: int, expected: tuple[int, int]
) -> None:
    width, height = size
    clip = sample_frames(write_ramp(tmp_path / "a.mp4", 3, width, height), 100.0, 64, area)
    assert clip.pixels.shape == (3, expected[1], expected[0], 3)
    assert expected[0] * expected[1] <= area
    odd = write_ramp(tmp_path / "a.png", 1, 63, 47)
    assert sample_frames(odd, 3.0, 64, 10_000).pixels.shape == (1, 46, 62, 3)


def test_what_breaks_off_is_no_clip(tmp_path: Path) -> None:
    whole = film(tmp_path / "a.mp4", 60)
    (tmp_path / "b.mp4").touch()
    with pytest.raises(ClipError, match="empty"):
        sample_frames(tmp_path / "b.mp4", 3.0, 64, 10_000)
    with pytest.raises(ClipError, match="No such file"):
        sample_frames(tmp_path / "c.mp4", 3.0, 64, 10_000)
    (tmp_path / "d.mp4").write_bytes(whole.read_bytes()[:-400])
    with pytest.raises(ClipError):
        sample_frames(tmp_path / "d.mp4", 3.0, 64, 10_000)
