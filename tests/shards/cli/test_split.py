"""The command `ltx-shards split`: its options, its summary, and being killed."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest
import typer

import shards.prepare.split.stage as module
from shards.cli import app
from shards.prepare.split.footage import EXTENSIONS
from shards.prepare.split.scenes import Length, SceneOptions
from shards.prepare.split.stage import SplitReport, check_request, split
from shards.prepare.tables.rows import read_rows
from shards.prepare.work.workers import Worker
from tests.support.command import run
from tests.support.faulty import faulty_decoder
from tests.support.footage import tree, write_scenes
from tests.support.killing import end, finish, kill_when, start


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command asks for, in a folder with a video."""
    monkeypatch.chdir(tmp_path)
    Path("a.mp4").touch()
    seen: list[Any] = []

    def split(request: Any, worker: Worker, **_: Any) -> SplitReport:
        seen.append((request, worker))
        return SplitReport(
            Path("out/t.csv"), 1, 2, 36.0, {"shorter than 5 frames": 3}, [], [("x.mp4", "torn")]
        )

    monkeypatch.setattr(module, "split", split)
    return seen


def test_every_option_is_passed_on(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "--detector adaptive --threshold 4 --luma-only --adaptive-window 3 --min-scene-length 9 "
        "--filter-shorter-than 2.5s --max-scenes 7 --skip-start 00:00:01 --skip-end 17 --frame-skip 1 "
        "--downscale 2 --crf 20 --table t.csv --worker 0 --workers 4"
    )
    assert run(monkeypatch, "split", "a.mp4", "--out", "out", *flags.split()) == 0
    ((request, worker),) = calls
    assert worker == Worker(0, 4, 0)
    assert (request.out, request.crf, request.table) == (Path("out"), 20, "t.csv")
    assert [video.name for video in request.videos] == ["a"]
    assert request.options == SceneOptions(
        detector="adaptive",
        threshold=4.0,
        luma_only=True,
        adaptive_window=3,
        min_scene_length=9,
        filter_shorter_than=Length(seconds=2.5),
        max_scenes=7,
        skip_start=Length(seconds=1.0),
        skip_end=Length(frames=17),
        frame_skip=1,
        downscale=2,
    )
    printed = capsys.readouterr().out
    for text in (
        "0:00:36",
        "out/previews",
        "next: ltx-shards caption out/t.csv",
        "3 scenes left out: shorter than 5 frames",
        "x.mp4",
        "torn",
    ):
        assert text in printed


def test_the_usual_is_what_the_library_takes(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "split", "a.mp4", "--out", "out") == 0
    ((request, worker),) = calls
    assert request.options == SceneOptions()
    assert (request.crf, request.table, worker) == (16, "dataset.jsonl", Worker())
    command = typer.main.get_command(app).commands["split"]  # type: ignore[attr-defined]
    assert {option.name: option.default for option in command.params}["extensions"] == ",".join(EXTENSIONS)


def test_videos_of_a_folder_are_chosen_by_their_ends(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b.MOV", "c.vob", "d.mkv"):
        Path(name).touch()
    assert run(monkeypatch, "split", ".", "--out", "out") == 0
    assert run(monkeypatch, "split", ".", "--out", "out", "--extensions", "mov, .vob") == 0
    assert [[video.path.name for video in request.videos] for request, _ in calls] == [
        ["a.mp4", "b.MOV", "d.mkv"],
        ["b.MOV", "c.vob"],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["b.mp4"], "b.mp4: no such video or folder"),
        (["a.mp4", "--detector", "magic"], "--detector 'magic' is not known"),
        (["a.mp4", "--filter-shorter-than", "long"], "--filter-shorter-than 'long': give frames as 17"),
        (["a.mp4", "--skip-start", "-5"], "--skip-start '-5': give frames as 17"),
        (["a.mp4", "--workers", "0"], "--workers 0"),
        (["a.mp4", "--worker", "1"], "--worker 1 needs --workers"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(
    calls: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, "split", *arguments, "--out", "out") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not calls


def test_a_video_that_kills_its_process_is_a_failure_and_the_others_are_split(tmp_path: Path) -> None:
    for name in ("a", "deadly", "z"):
        write_scenes(tmp_path / f"videos/{name}.mp4", (20,))
    arguments = ["split", tmp_path / "videos", "--out", tmp_path / "out"]
    done = [end(start(arguments, **faulty_decoder(tmp_path / "faults"))) for _ in range(3)]
    assert [code for code, _ in done] == [-signal.SIGSEGV, 0, 0], done[1][1]
    assert [row["media_path"] for row in read_rows(tmp_path / "out/dataset.jsonl")] == [
        f"{name}/{name}-scene-0001.mp4" for name in ("a", "z")
    ]
    assert [row["reason"] for row in read_rows(tmp_path / "out/failures.jsonl")] == [
        "the process died while reading it: SIGSEGV"
    ]


def test_killed_at_any_moment_it_ends_with_the_same_clips(tmp_path: Path) -> None:
    for number in range(6):
        write_scenes(tmp_path / f"videos/{number}.mp4", (20, 25, 18), width=320, height=240, first=4 * number)
    options = SceneOptions(min_scene_length=10)
    split(check_request([tmp_path / "videos"], tmp_path / "whole", options))
    arguments = ["split", tmp_path / "videos", "--min-scene-length", "10", "--out"]
    out = tmp_path / "out"

    def clips() -> int:
        return len(list(out.glob("*/*-scene-*.mp4")))

    kill_when([*arguments, out], lambda: clips() >= 2)
    assert clips() < 10
    kill_when([*arguments, out, "--workers", "2"], lambda: clips() >= 10)
    assert "6" in finish([*arguments, out, "--workers", "2"])
    assert tree(out, leave=".split") == tree(tmp_path / "whole", leave=".split")
    assert not list(out.glob(".split/*/scratch"))
