"""Items that kill or hold up the process that touches them are found, others are not."""

from __future__ import annotations

import ctypes
import os
import signal
import time
from functools import partial
from pathlib import Path

import pytest

from shards.prepare.work.trial import attempt, deadly, mark_deadly, marked_deadly
from shards.storage import Folder


def touch(folder: Path, item: str) -> str:
    with open(folder / item, "a") as file:
        file.write("x")
    match item:
        case "null":
            ctypes.string_at(0)
        case "abort":
            os.abort()
        case "exit":
            os._exit(3)
        case "still":
            time.sleep(100)
        case "error":
            raise ValueError("for whoever does the work")
        case "killed once" if (folder / item).read_text() == "x":
            os.kill(os.getpid(), signal.SIGKILL)
    return item.upper()


@pytest.mark.parametrize(
    ("items", "found"),
    [
        ([], {}),
        (["a", "error", "b"], {}),
        (["null"], {0: "SIGSEGV"}),
        (["a", "null", "b", "abort", "exit"], {1: "SIGSEGV", 3: "SIGABRT", 4: "exit code 3"}),
        (["a", "killed once", "b"], {}),
        (["killed once", "null"], {1: "SIGSEGV"}),
    ],
)
def test_an_item_that_kills_its_process_twice_is_named(
    tmp_path: Path, items: list[str], found: dict[int, str]
) -> None:
    died = {number: f"the process died while reading it: {how}" for number, how in found.items()}
    assert deadly(partial(touch, tmp_path), items, 60.0) == died
    assert {path.name for path in tmp_path.iterdir()} == set(items)


def test_an_item_that_stands_still_is_named(tmp_path: Path) -> None:
    assert deadly(partial(touch, tmp_path), ["a", "still", "b"], 1.0) == {1: "nothing came of it for 1 s"}
    assert (tmp_path / "still").read_text() == "x"


def test_what_comes_of_items_is_given_so_that_nobody_does_it_again(tmp_path: Path) -> None:
    items = ["a", "killed once", "error", "null", "b"]
    made, died = attempt(partial(touch, tmp_path), items, 60.0)
    assert made == {0: "A", 1: "KILLED ONCE", 4: "B"}
    assert died == {3: "the process died while reading it: SIGSEGV"}
    assert [(tmp_path / item).read_text() for item in items] == ["x", "xx", "x", "xx", "x"]


def test_marks_are_found_by_later_processes(tmp_path: Path) -> None:
    names = ["a/b.mp4", "ein Hügel; 山.mp4", "\udcff", "c"]
    assert marked_deadly(Folder(tmp_path), "deadly", names) == set()
    mark_deadly(Folder(tmp_path), "deadly", names[:3])
    assert marked_deadly(Folder(tmp_path), "deadly", names[1:]) == set(names[1:3])
