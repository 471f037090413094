"""Videos as files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dist_trainer.validation.show import beside, moving, read, sweep, write, write_shown


def numbered(count: int, first: int = 0) -> np.ndarray:
    """Frames of 16 x 16 pixels, each of its own grey."""
    grey = (np.arange(count) * 10 + first).astype(np.uint8)
    return np.broadcast_to(grey[:, None, None, None], (count, 16, 16, 3)).copy()


@pytest.mark.parametrize(
    ("frames", "shown"),
    [(9, list(range(9))), (5, [0, 0, 1, 1, 2, 2, 3, 3, 4]), (3, [0, 0, 0, 0, 1, 1, 1, 1, 2]), (1, [0] * 9)],
)
def test_a_reference_stands_left_and_each_of_its_frames_as_long_as_it_stands_for(
    frames: int, shown: list[int]
) -> None:
    both = beside(numbered(frames), numbered(9, first=100))
    assert both.shape == (9, 16, 32, 3)
    assert (both[:, 0, 0, 0] // 10).tolist() == shown
    assert both[:, 0, 31, 0].tolist() == [100 + 10 * number for number in range(9)]


@pytest.mark.parametrize("name", ["a.mp4", "a.png"])
def test_what_is_written_is_read_again_and_leaves_nothing_else(tmp_path: Path, name: str) -> None:
    frames = numbered(1 if name.endswith("png") else 9)
    write(tmp_path / "new" / name, frames, 12.5)
    found = read(tmp_path / "new" / name)
    assert found.shape == frames.shape
    assert np.abs(found.astype(int) - frames).max() <= 3
    assert [path.name for path in (tmp_path / "new").iterdir()] == [name]


def test_a_video_has_a_gif_beside_it_which_is_there_before_it(tmp_path: Path) -> None:
    write_shown(tmp_path / "a.mp4", numbered(9), 12.5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.gif", "a.mp4"]
    with Image.open(moving(tmp_path / "a.mp4")) as picture:
        assert (picture.format, picture.n_frames) == ("GIF", 9)
    (tmp_path / "b.gif").mkdir()
    with pytest.raises(OSError, match="directory"):
        write_shown(tmp_path / "b.mp4", numbered(9), 12.5)
    assert not (tmp_path / "b.mp4").exists()


def test_a_sweep_takes_what_is_half_written_alone(tmp_path: Path) -> None:
    for name in (".01234567.mp4", ".a.gif.01234567.tmp", "a.mp4"):
        (tmp_path / name).touch()
    (tmp_path / ".kept").mkdir()  # as what a file system does not let go of
    sweep(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".kept", "a.mp4"]


def test_what_cannot_be_written_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").mkdir()
    with pytest.raises(OSError, match="directory"):
        write(tmp_path / "a.mp4", numbered(9), 12)
    assert [path.name for path in tmp_path.iterdir()] == ["a.mp4"]
