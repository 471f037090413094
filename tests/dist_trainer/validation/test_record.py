"""A step's videos are made once for the weights they show, whatever interrupts them."""

from __future__ import annotations

import json
from pathlib import Path

from dist_trainer.validation.record import NAME, begin, complete

NAMES = ["01_a.mp4", "02_b.mp4"]


def begun(folder: Path, request: str = "asked", again: bool = False) -> list[str] | None:
    return begin(folder, request, NAMES, trained_again=again)


def test_what_was_made_before_a_stop_is_kept_and_the_rest_is_missing(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    assert begun(folder) == NAMES
    (folder / NAMES[0]).touch()
    assert begun(folder) == NAMES[1:]


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


def test_a_step_that_is_trained_again_has_new_videos(tmp_path: Path) -> None:
    folder = tmp_path / "step"
    begun(folder)
    (folder / NAMES[0]).touch()
    complete(folder, "asked", {}, {})
    assert begun(folder, again=True) == NAMES
    assert not (folder / NAMES[0]).exists()
