"""What cannot become a sample video is refused before a job is queued, in a line that says what would do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dist_trainer.config import RunConfig
from dist_trainer.validation.request import PARTS, check, check_files, request
from shards.dataset.opened import Dataset
from shards.errors import InputError
from shards.geometry import Grid, Patch, Scale
from shards.prepare.media.video import write_clip
from tests.support.datasets import write_dataset

PATCH = Patch(1, 1)
DIMS = [96, 64, 9]


def config(model: Path | str = "LTXV_2B_0.9.5", mode: str = "none", **validation: Any) -> RunConfig:
    block = {"prompts": ["a", "b"], "video_dims": DIMS, **validation}
    return RunConfig.model_validate(
        {
            "model": {"model_source": str(model)},
            "lora": {},
            "conditioning": {"mode": mode},
            "data": {"preprocessed_data_root": "somewhere"},
            "validation": block,
        }
    )


def dataset(folder: Path, grid: tuple[int, int, int] = (3, 4, 6), reference: Any = None) -> Dataset:
    return write_dataset(folder / "data", 4, grids=(grid,), references=(reference,), scale=Scale(4, 16))


@pytest.mark.parametrize(
    ("dims", "patch", "nearest"),
    [
        ([100, 64, 9], PATCH, "[96, 64, 9]"),
        ([90, 50, 11], PATCH, "[96, 48, 9]"),
        ([8, 64, 1], PATCH, "[16, 64, 1]"),
        ([96, 80, 9], Patch(1, 2), "[96, 64, 9]"),
        ([96, 64, 12], PATCH, "[96, 64, 13]"),
    ],
)
def test_a_size_that_does_not_fit_is_refused_with_the_nearest_that_does(
    tmp_path: Path, dims: list[int], patch: Patch, nearest: str
) -> None:
    data = dataset(tmp_path)
    with pytest.raises(InputError) as caught:
        request(config(video_dims=dims), data, patch)
    assert str(caught.value).startswith(f"validation.video_dims: {dims} does not fit the model: ")
    assert str(caught.value).endswith(f"the nearest is {nearest}")
    fits = [int(number) for number in nearest.strip("[]").split(",")]
    assert request(config(video_dims=fits), data, patch) is not None


@pytest.mark.parametrize(
    ("reference", "dims", "grid", "pixels"),
    [
        ((3, 4, 6), DIMS, (3, 4, 6), (9, 64, 96)),
        ((3, 2, 3), DIMS, (3, 2, 3), (9, 32, 48)),
        ((2, 2, 3), [96, 64, 17], (3, 2, 3), (9, 32, 48)),
        ((1, 4, 6), DIMS, (1, 4, 6), (1, 64, 96)),
    ],
    ids=["of the same size", "half as large", "at half the rate too", "a picture"],
)
def test_references_are_as_much_smaller_as_the_datasets_are(
    tmp_path: Path, reference: tuple[int, int, int], dims: list[int], grid: Any, pixels: Any
) -> None:
    data = dataset(tmp_path, reference=reference)
    wanted = request(
        config(mode="reference_video", reference_videos=["a", "b"], video_dims=dims), data, PATCH
    )
    assert wanted is not None
    assert (wanted.reference, wanted.reference_size) == (Grid(*grid), pixels)


def test_a_size_must_fit_smaller_references_too(tmp_path: Path) -> None:
    data = dataset(tmp_path, reference=(3, 2, 3))
    asked = config(mode="reference_video", reference_videos=["a", "b"], video_dims=[96, 48, 9])
    with pytest.raises(InputError, match=r"and its references: .* height of 32, .* nearest is \[96, 64, 9\]"):
        request(asked, data, PATCH)


def test_a_first_frame_needs_a_frame_after_it(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^validation.images: .* 1 frame; the shortest .* has 5 frames$"):
        request(config(images=["a", "b"], video_dims=[96, 64, 1]), dataset(tmp_path), PATCH)


def media(folder: Path) -> dict[str, str]:
    """Files by what they are."""
    frames = np.zeros((9, 64, 96, 3), np.uint8)
    files = {"short.mp4": frames[:5], "long.mp4": frames, "picture.png": frames[:1]}
    for name, content in files.items():
        write_clip(folder / name, content, 12)
    (folder / "text.mp4").write_text("no video")
    (folder / "broken.png").write_bytes((folder / "picture.png").read_bytes()[:40])
    return {path.name: str(path) for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"images": ["picture.png", "absent.png"]}, "validation.images.1: {absent.png}: No such file"),
        ({"images": ["broken.png", "picture.png"]}, "validation.images.0: {broken.png}: "),
        ({"reference_videos": ["long.mp4", "text.mp4"]}, "validation.reference_videos.1: {text.mp4}: "),
        (
            {"reference_videos": ["short.mp4", "long.mp4"]},
            "validation.reference_videos.0: {short.mp4}: 5 frames, but a video of 9 frames needs 9; give a longer file",
        ),
    ],
)
def test_files_that_cannot_be_used_are_named(
    tmp_path: Path, model_folder: Path, files: dict[str, list[str]], said: str
) -> None:
    there = media(tmp_path) | {"absent.png": str(tmp_path / "absent.png")}
    mode = "reference_video" if "reference_videos" in files else "none"
    asked = config(
        model_folder, mode, **{key: [there[name] for name in names] for key, names in files.items()}
    )
    with pytest.raises(InputError) as caught:
        check(asked, dataset(tmp_path, reference=(3, 4, 6)), PATCH)
    for name, path in there.items():
        said = said.replace(f"{{{name}}}", path)
    assert str(caught.value).startswith(said)


def test_what_can_be_made_passes_and_files_of_no_validation_are_not_looked_at(
    tmp_path: Path, model_folder: Path
) -> None:
    there, data = media(tmp_path), dataset(tmp_path, reference=(3, 4, 6))
    asked: dict[str, Any] = {
        "images": [there["picture.png"]] * 2,
        "reference_videos": [there["long.mp4"]] * 2,
    }
    check(config(model_folder, "reference_video", **asked), data, PATCH)
    check(config(model_folder, images=["absent"] * 2, interval=None), data, PATCH)
    check_files(config(model_folder, "reference_video", **asked))


def test_files_are_looked_at_before_there_is_a_dataset(tmp_path: Path, model_folder: Path) -> None:
    there = media(tmp_path)
    with pytest.raises(InputError, match=r"^validation.reference_videos.1: .*text.mp4: "):
        check_files(
            config(
                model_folder,
                "reference_video",
                reference_videos=[there["short.mp4"], there["text.mp4"]],
            )
        )


def test_a_model_without_a_text_encoder_is_named(tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    (bare / "transformer").mkdir(parents=True)
    with pytest.raises(InputError, match=r"bare has no text_encoder/, .* set validation.interval to null"):
        check(config(bare), dataset(tmp_path), PATCH)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"_class_name": "DDIMScheduler"}', "_class_name 'DDIMScheduler' is not FlowMatchEulerDiscrete"),
        ("[]", "_class_name None is not FlowMatchEulerDiscreteScheduler, which sample videos need; give a "),
        ("{", "not a scheduler's config: "),
        (None, "not a scheduler's config: "),
    ],
)
def test_a_model_with_another_scheduler_is_named(tmp_path: Path, text: str | None, said: str) -> None:
    for part in PARTS:
        (tmp_path / "model" / part).mkdir(parents=True)
    path = tmp_path / "model" / "scheduler" / "scheduler_config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError) as caught:
        check_files(config(tmp_path / "model"))
    assert str(caught.value).startswith(f"model.model_source: {path}: {said}")
