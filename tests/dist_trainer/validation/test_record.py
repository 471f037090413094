"""A step's videos are made once for the weights they show, whatever interrupts them."""

from __future__ import annotations

import json
from pathlib import Path

from dist_trainer.validation.record import NAME, begin, complete, forget

NAMES = ["01_a.mp4", "02_b.mp4"]


def begun(folder: Path, request: str = "asked") -> list[str] | None:
    return begin(folder, request, NAMES)


def test_what_was_made_before_a_stop_is_kept_and_the_rest_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    assert begun(folder) == NAMES
    (folder / NAMES[0]).touch()
    assert begun(folder) == NAMES[1:]


def test_what_a_kill_left_half_written_goes(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    begun(folder)
    (folder / ".01234567.mp4").touch()
    assert begun(folder) == NAMES
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_other_prompts_or_sizes_make_all_videos_of_an_unfinished_step_again(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    begun(folder)
    (folder / NAMES[0]).touch()
    assert begun(folder, "another") == NAMES
    assert not (folder / NAMES[0]).exists()


def test_a_complete_step_is_not_repeated_though_a_video_failed_or_others_are_asked_for(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "step"
    begun(folder)
    complete(folder, "asked", {NAMES[0]: "a"}, {NAMES[1]: "no memory"})
    assert begun(folder) is None
    assert begun(folder, "another") is None
    record = json.loads((folder / NAME).read_text())
    assert record["failed"] == {NAMES[1]: "no memory"}


def test_steps_that_are_trained_again_have_new_videos(tmp_path: Path) -> None:
    """Also where a launch saves one of them and ends before its videos, so that the next launch begins there."""
    steps = {step: tmp_path / f"step_{step:06d}" for step in (0, 2, 4)}
    for folder in steps.values():
        begun(folder)
        (folder / NAMES[0]).touch()
        complete(folder, "asked", {}, {})
    for start in (2, 4):
        forget(tmp_path, start)
    assert (begun(steps[0]), begun(steps[2])) == (None, None)
    assert begun(steps[4]) == NAMES
    assert not (steps[4] / NAMES[0]).exists()


def test_before_the_first_videos_there_is_nothing_to_forget(tmp_path: Path) -> None:
    forget(tmp_path / "samples", 0)
