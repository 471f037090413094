"""The command `ltx-shards reference`: its options, its summary, and being killed."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import shards.prepare.reference.stage as module
from shards.prepare.reference.filters import builtin, plugin
from shards.prepare.reference.stage import ReferenceOptions, ReferenceReport, check_request, make_references
from shards.prepare.tables.rows import read_rows, write_rows
from shards.prepare.work.workers import Worker
from tests.support.command import run
from tests.support.footage import scene, tree, write_scenes
from tests.support.killing import ROOT, command, finish, kill_when


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
        return ReferenceReport(Path("t.csv"), Path("references/canny"), 3, [("x.mp4", "torn")])

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
    assert "t.csv: 3 references in references/canny, 1 clips got none" in printed
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


_INVERSE = """import numpy as np


def compute_condition(frames):
    return 255 - frames
"""


@pytest.mark.parametrize("way", ["--kind", "--compute"])
def test_killed_at_any_moment_it_ends_with_the_same_references(tmp_path: Path, way: str) -> None:
    folders = [tmp_path / name for name in ("whole", "killed")]
    names = [f"clips/{number}.mp4" for number in range(40)]
    for folder in folders:
        for number, name in enumerate(names):
            write_scenes(folder / name, (12,), width=160, height=120, first=number)
        write_rows(folder / "t.jsonl", [{"media_path": name, "caption": "x"} for name in names])
    whole, killed = folders
    (tmp_path / "mine.py").write_text(_INVERSE)
    spec = f"{tmp_path / 'mine.py'}:compute_condition"
    filter = builtin("blur") if way == "--kind" else plugin(spec)
    made_whole = make_references(check_request(whole / "t.jsonl", filter, ReferenceOptions()))
    arguments = ["reference", killed / "t.jsonl", way, "blur" if way == "--kind" else spec]

    def made() -> int:
        return len(list(killed.glob("references/*/clips/*.mp4")))

    kill_when(arguments, lambda: made() >= 5)
    table = (killed / "t.jsonl").read_bytes()
    assert b"reference_path" not in table
    kill_when([*arguments, "--workers", "2"], lambda: made() >= 25)
    assert "0 clips got none" in finish([*arguments, "--workers", "2"])
    assert tree(killed, leave=".reference") == tree(whole, leave=".reference")
    assert (killed / "references" / made_whole.folder.name).is_dir()
    assert not list(killed.glob(".reference/*/scratch"))


# A clip of five frames stands for one that a user's function, or a decoder, dies of.
_DEADLY = """import ctypes


def compute_condition(frames):
    if len(frames) == 5:
        ctypes.string_at(0)
    return 255 - frames
"""


def test_a_clip_that_kills_its_process_is_a_failure_and_the_others_get_references(tmp_path: Path) -> None:
    for number, length in enumerate((12, 5, 12)):
        write_scenes(tmp_path / f"{number}.mp4", (length,), first=number)
    write_rows(tmp_path / "t.jsonl", [{"media_path": f"{number}.mp4"} for number in range(3)])
    (tmp_path / "mine.py").write_text(_DEADLY)
    arguments = ["reference", tmp_path / "t.jsonl", "--compute", f"{tmp_path / 'mine.py'}:compute_condition"]
    done = [
        subprocess.run(command(*arguments), cwd=ROOT, capture_output=True, text=True, check=False)
        for _ in range(3)
    ]
    assert [each.returncode for each in done] == [-signal.SIGSEGV, 0, 0], done[1].stderr
    assert all("2 references" in each.stdout for each in done[1:])
    (failures,) = tmp_path.glob("references/*/failures.jsonl")
    assert read_rows(failures) == [
        {"source": "1.mp4", "reason": "the process died while reading it: SIGSEGV"}
    ]


def test_ranks_of_a_launcher_write_what_one_worker_writes(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "two")]
    names = [f"{number}.png" for number in range(40)]
    for folder in folders:
        folder.mkdir()
        for number, name in enumerate(names):
            Image.fromarray(scene(number, 1, 64, 48)[0]).save(folder / name)
        write_rows(folder / "t.jsonl", [{"media_path": name} for name in names])
    one, two = folders
    finish(["reference", one / "t.jsonl", "--kind", "canny"])
    ranks = [
        subprocess.Popen(
            command("reference", two / "t.jsonl", "--kind", "canny"),
            cwd=ROOT,
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in (1, 0)
    ]
    printed = [rank.communicate(timeout=120)[0] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    assert printed[0] == ""
    assert "40 references" in printed[1]
    assert tree(two, leave=".reference") == tree(one, leave=".reference")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return frames[:5]", "it gave 5 frames for 12: give as many (a.mp4)"),
        ("return frames / 255.0", "it gave float64, expected uint8 from 0 to 255 (a.mp4)"),
        (
            "return frames[..., 0]",
            "it gave the shape [12, 48, 64], expected [F,H,W,3]; for this clip F is 12 (a.mp4)",
        ),
        ("return None", "it gave a NoneType, expected a NumPy array (a.mp4)"),
        ("raise KeyError('depth')", "KeyError: 'depth' (mine.py, line 2)"),
        ("return frames +", "the file cannot be loaded: SyntaxError: invalid syntax (mine.py, line 2)"),
        ("return frames\n\ndel compute", "the file has no function 'compute'"),
        (
            "return frames\n\nimport not_here",
            "the file cannot be loaded: ModuleNotFoundError: No module named 'not_here' (mine.py, line 4)",
        ),
    ],
)
def test_what_is_wrong_with_the_users_function_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    body: str,
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_scenes(Path("a.mp4"), (12,))
    Path("t.csv").write_text("media_path\na.mp4\n")
    Path("mine.py").write_text(f"def compute(frames):\n    {body}\n")
    assert run(monkeypatch, "reference", "t.csv", "--compute", "mine.py:compute") == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert errors.endswith(f"--compute 'mine.py:compute': {message}\n")
    assert errors.count("\n") == 1
    assert not list(Path("references").rglob("*.mp4"))
