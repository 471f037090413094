"""The command `ltx-shards reference`: its options, its summary, and being killed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import shards.prepare.reference.stage as module
from shards.prepare.reference.filters import builtin
from shards.prepare.reference.stage import ReferenceOptions, ReferenceReport, check_request, make_references
from shards.prepare.tables.rows import write_rows
from shards.prepare.work.workers import Worker
from tests.support.command import run
from tests.support.footage import tree, write_scenes
from tests.support.killing import finish, kill_when


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command asks for, in a folder with a table of one clip and a user's function."""
    monkeypatch.chdir(tmp_path)
    Path("t.csv").write_text("media_path,film\na.mp4,b.mp4\n")
    Path("mine.py").write_text("def f(frames):\n    return frames\n")
    seen: list[Any] = []

    def make(request: Any, worker: Worker, on_progress: Any) -> ReferenceReport:
        seen.append((request, worker))
        on_progress(1, 1)
        return ReferenceReport(Path("t.csv"), Path("references/canny"), 3, 2, [("x.mp4", "torn")])

    monkeypatch.setattr(module, "make_references", make)
    return seen


def test_every_option_is_passed_on(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "--kind canny --low 50 --high 80 --out u.csv --column r --media-column film --append --overwrite "
        "--crf 3 --worker 0 --workers 4"
    )
    assert run(monkeypatch, "reference", "t.csv", *flags.split()) == 0
    ((request, worker),) = calls
    assert worker == Worker(0, 4, 0)
    assert request.filter.label == "canny-50-80"
    assert request.options == ReferenceOptions(Path("u.csv"), "r", "film", True, False, True, 3)
    assert request.references == {"b.mp4": "references/canny-50-80-crf3/b.mp4"}
    printed = capsys.readouterr().out
    assert "t.csv: 3 references made in references/canny, 2 were there, 1 clips got none" in printed
    assert "torn" in printed


@pytest.mark.parametrize(
    ("flags", "label"),
    [
        ("--kind canny", "canny"),
        ("--kind blur --sigma 7", "blur-7"),
        ("--kind downscale --factor 4 --keep-size", "downscale-4-kept"),
        ("--compute mine.py:f", "f-"),
    ],
)
def test_filters_are_chosen(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, flags: str, label: str
) -> None:
    assert run(monkeypatch, "reference", "t.csv", *flags.split()) == 0
    ((request, worker),) = calls
    assert request.filter.label.startswith(label)
    assert request.options == ReferenceOptions()
    assert worker == Worker()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("t.csv", "give exactly one of --kind and --compute"),
        ("t.csv --kind canny --compute mine.py:f", "give exactly one of --kind and --compute"),
        ("t.csv --compute mine.py:f --low 3", "are settings of --kind, not of --compute"),
        ("t.csv --compute mine.py:g", "the file has no function 'g'"),
        ("t.csv --kind sobel", "--kind 'sobel' is not known"),
        ("u.csv --kind canny", "u.csv: no such dataset file"),
        ("t.csv --kind canny --workers 0", "--workers 0"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(
    calls: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: str,
    message: str,
) -> None:
    assert run(monkeypatch, "reference", *arguments.split()) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1
    assert not calls


def test_killed_at_any_moment_it_ends_with_the_same_references(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("whole", "killed")]
    names = [f"clips/{number}.mp4" for number in range(40)]
    for folder in folders:
        for number, name in enumerate(names):
            write_scenes(folder / name, (12,), width=160, height=120, first=number)
        write_rows(folder / "t.jsonl", [{"media_path": name, "caption": "x"} for name in names])
    whole, killed = folders
    make_references(check_request(whole / "t.jsonl", builtin("blur"), ReferenceOptions()))
    arguments = ["reference", killed / "t.jsonl", "--kind", "blur"]

    def made() -> int:
        return len(list(killed.glob("references/blur/clips/*.mp4")))

    kill_when(arguments, lambda: made() >= 5)
    table = (killed / "t.jsonl").read_bytes()
    assert b"reference_path" not in table
    kill_when([*arguments, "--workers", "2"], lambda: made() >= 25)
    assert "0 clips got none" in finish([*arguments, "--workers", "2"])
    assert tree(killed, leave=".reference") == tree(whole, leave=".reference")
    assert not list(killed.glob(".reference/*/scratch"))
