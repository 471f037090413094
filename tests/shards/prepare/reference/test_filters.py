"""Filters of frames: what each does, how its results are called, and what is refused of a user's function."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from shards.errors import InputError
from shards.prepare.reference.filters import KINDS, FilterError, FilterOptions, builtin, plugin

SQUARE = np.zeros((2, 40, 48, 3), np.uint8)
SQUARE[:, 10:30, 12:36] = (200, 40, 90)

frames = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 3), st.integers(16, 28), st.integers(16, 28), st.just(3))
)


@settings(deadline=None)
@given(frames=frames, kind=st.sampled_from(KINDS), keep=st.booleans())
def test_filters_give_as_many_frames_of_their_kind(frames: np.ndarray, kind: str, keep: bool) -> None:
    options = FilterOptions(keep_size=keep) if kind == "downscale" else FilterOptions()
    result = builtin(kind, options).apply(frames)
    assert result.dtype == np.uint8
    assert len(result) == len(frames)
    assert result.shape[3] == 3
    smaller = kind == "downscale" and not keep
    assert result.shape[1:3] == tuple(round(side / (2 if smaller else 1)) for side in frames.shape[1:3])


@settings(deadline=None)
@given(frames=frames, kind=st.sampled_from(KINDS))
def test_frames_are_filtered_each_for_itself(frames: np.ndarray, kind: str) -> None:
    apply = builtin(kind).apply
    assert np.array_equal(apply(frames), np.concatenate([apply(frame[None]) for frame in frames]))


def test_canny_draws_edges_as_the_original_script_does() -> None:
    edges = builtin("canny").apply(SQUARE)
    assert set(np.unique(edges)) == {0, 255}
    assert np.array_equal(edges[0, ..., 0], cv2.Canny(cv2.cvtColor(SQUARE[0], cv2.COLOR_RGB2GRAY), 100, 200))
    assert np.array_equal(edges[..., 0], edges[..., 2])
    assert not edges[:, 15:25, 17:31].any()
    assert edges[:, 8:32, 10:38].any()


def test_higher_thresholds_leave_fewer_edges() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 3), dtype=np.uint8)
    few = builtin("canny", FilterOptions(low=400, high=900)).apply(noise)
    assert few.sum() < builtin("canny").apply(noise).sum()


def test_blur_spreads_and_keeps_the_mean() -> None:
    weak, strong = (builtin("blur", FilterOptions(sigma=sigma)).apply(SQUARE) for sigma in (1.0, 6.0))
    assert SQUARE.std() > weak.std() > strong.std()
    assert strong.mean() == pytest.approx(SQUARE.mean(), rel=0.1)


def test_grayscale_has_no_colour() -> None:
    gray = builtin("grayscale").apply(SQUARE)
    assert np.array_equal(gray[..., 0], gray[..., 1])
    assert abs(int(gray[0, 20, 20, 0]) - (0.299 * 200 + 0.587 * 40 + 0.114 * 90)) < 1


def test_downscale_averages_and_may_be_blown_up_again() -> None:
    checks = np.indices((32, 32)).sum(0) % 2 * 255
    fine = np.repeat(checks[None, ..., None], 3, axis=3).astype(np.uint8)
    small = builtin("downscale", FilterOptions(factor=4)).apply(fine)
    assert small.shape == (1, 8, 8, 3)
    assert set(np.unique(small)) <= {127, 128}
    large = builtin("downscale", FilterOptions(factor=4, keep_size=True)).apply(fine)
    assert large.shape == fine.shape
    assert large.std() < 2


@pytest.mark.parametrize(
    ("kind", "options", "label"),
    [
        ("canny", FilterOptions(), "canny"),
        ("canny", FilterOptions(low=100, high=200), "canny"),
        ("canny", FilterOptions(high=150), "canny-100-150"),
        ("blur", FilterOptions(sigma=2.5), "blur-2.5"),
        ("downscale", FilterOptions(factor=4), "downscale-4"),
        ("downscale", FilterOptions(factor=2, keep_size=True), "downscale-2-kept"),
    ],
)
def test_other_settings_have_another_name(kind: str, options: FilterOptions, label: str) -> None:
    assert builtin(kind, options).label == label


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        (
            "sobel",
            FilterOptions(),
            "--kind 'sobel' is not known: use canny, blur, grayscale, downscale, or --compute",
        ),
        ("blur", FilterOptions(low=3), "--low is not a setting of --kind blur"),
        ("canny", FilterOptions(keep_size=True), "--keep-size is not a setting of --kind canny"),
        ("canny", FilterOptions(low=300), "--low 300 and --high 200: low is at least 0 and at most high"),
        ("blur", FilterOptions(sigma=0), "--sigma 0 must be above 0"),
        ("downscale", FilterOptions(factor=1), "--factor 1 must be at least 2 and at most 64"),
        ("downscale", FilterOptions(factor=1000), "--factor 1000 must be at least 2 and at most 64"),
    ],
)
def test_settings_that_make_no_sense(kind: str, options: FilterOptions, message: str) -> None:
    with pytest.raises(InputError) as error:
        builtin(kind, options)
    assert str(error.value).startswith(message)


def write_plugin(folder: Path, body: str, name: str = "mine.py") -> str:
    (folder / name).write_text(f"import numpy as np\n\n\ndef compute(frames):\n    {body}\n")
    return f"{folder / name}:compute"


def test_a_function_of_the_user_gets_whole_clips(tmp_path: Path) -> None:
    found = plugin(write_plugin(tmp_path, "return (frames[:, ::2, ::2] + np.uint8(len(frames))).copy()"))
    assert found.whole
    assert np.array_equal(found.apply(SQUARE), SQUARE[:, ::2, ::2] + 2)


def test_it_may_import_what_lies_beside_it(tmp_path: Path) -> None:
    (tmp_path / "beside_it.py").write_text("VALUE = 7\n")
    found = plugin(write_plugin(tmp_path, "from beside_it import VALUE; return frames * 0 + np.uint8(VALUE)"))
    assert (found.apply(SQUARE) == 7).all()


def test_it_may_define_data_classes(tmp_path: Path) -> None:
    (tmp_path / "classes.py").write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Inverse:\n    top: int = 255\n\n"
        "    def __call__(self, frames):\n        return self.top - frames\n\ncompute = Inverse()\n"
    )
    assert np.array_equal(plugin(f"{tmp_path / 'classes.py'}:compute").apply(SQUARE), 255 - SQUARE)


def test_another_function_has_another_name(tmp_path: Path) -> None:
    first = plugin(write_plugin(tmp_path, "return frames")).label
    assert plugin(write_plugin(tmp_path, "return frames")).label == first
    assert plugin(write_plugin(tmp_path, "return 255 - frames")).label != first
    assert first.startswith("compute-")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return frames.tolist()", "it gave a list, expected a NumPy array"),
        ("return frames / 255", "it gave float64, expected uint8 from 0 to 255"),
        ("return frames[..., 0]", "it gave the shape [2, 40, 48], expected [F,H,W,3]; for this clip F is 2"),
        ("return frames[..., :1]", "it gave the shape [2, 40, 48, 1]"),
        ("return frames[:, :0]", "it gave the shape [2, 0, 48, 3]"),
        ("return frames[:1]", "it gave 1 frames for 2: give as many"),
        ("return None", "it gave a NoneType"),
    ],
)
def test_results_that_are_no_frames(tmp_path: Path, body: str, message: str) -> None:
    spec = write_plugin(tmp_path, body)
    with pytest.raises(InputError) as error:
        plugin(spec).apply(SQUARE)
    assert str(error.value).startswith(f"--compute '{spec}': {message}")


def test_an_error_of_the_function_says_where(tmp_path: Path) -> None:
    spec = write_plugin(tmp_path, "return {}['depth']")
    with pytest.raises(FilterError) as error:
        plugin(spec).apply(SQUARE)
    assert error.value.reason == f"--compute '{spec}': KeyError: 'depth' (mine.py, line 5)"


def test_a_function_that_wants_to_end_the_program_ends_its_clip(tmp_path: Path) -> None:
    with pytest.raises(FilterError, match=r"SystemExit: 3 \(mine\.py, line 5\)$"):
        plugin(write_plugin(tmp_path, "raise SystemExit(3)")).apply(SQUARE)


@pytest.mark.parametrize(
    ("spec", "content", "message"),
    [
        ("mine.py", "", "give a Python file and a function in it, as my_file.py:compute_condition"),
        ("mine.txt:compute", "", "give a Python file and a function"),
        ("mine.py:not a name", "", "give a Python file and a function"),
        ("nowhere.py:compute", "", "no such file"),
        ("mine.py:compute", "x = 1\n", "the file has no function 'compute'"),
        ("mine.py:compute", "compute = 3\n", "the file has no function 'compute'"),
        ("mine.py:compute", "x =\n", "the file cannot be loaded: SyntaxError: invalid syntax"),
        ("mine.py:compute", "import not_installed_here\n", "the file cannot be loaded: ModuleNotFoundError"),
        ("mine.py:compute", "raise SystemExit\n", "SystemExit (mine.py, line 1)"),
        ("mine.py:compute", "\n\n1 / 0\n", "ZeroDivisionError: division by zero (mine.py, line 3)"),
    ],
)
def test_files_that_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, content: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(content)
    with pytest.raises(InputError) as error:
        plugin(spec)
    assert str(error.value).startswith(f"--compute {spec!r}: ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)
