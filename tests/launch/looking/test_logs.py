"""`ltx-launch logs`: what any rank printed, as it comes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dist_trainer.rundir import RunFolder
from launch.ended.tail import Tail
from launch.looking.logs import errors, last_lines, log_of
from shards.errors import InputError
from tests.support.launched import STEPS, Launched, ltx_launch
from tests.support.runs import ROOT, environment, hearing


def write(run: Path, name: str, text: str, when: float) -> Path:
    path = run / "logs" / "ranks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    os.utime(path, (when, when))
    return path


def test_the_last_lines_of_a_rank(launched: Launched) -> None:
    shown = ltx_launch("logs", launched.folder, "--lines", "2").stdout.splitlines()
    assert len(shown) == 2
    assert f"step {STEPS}/{STEPS}" in shown[0]
    assert shown[1].startswith("done: ")
    other = ltx_launch("logs", launched.folder, "--rank", "1")
    assert other.returncode == 0
    assert "step 1/" not in other.stdout


@pytest.mark.parametrize("count", [0, 1, 7, 5000])
def test_last_lines_are_those_of_the_whole_file(tmp_path: Path, count: int) -> None:
    lines = [f"line {number} {'x' * (number % 97)}" for number in range(4000)]
    path = tmp_path / "log"
    path.write_text("".join(f"{line}\n" for line in lines))
    assert last_lines(path, count) == (lines[-count:] if count else [])


def test_the_newest_job_is_shown_unless_another_is_asked_for(tmp_path: Path) -> None:
    old, new = write(tmp_path, "99_0.log", "old", 1000), write(tmp_path, "100_0.log", "new", 2000)
    assert log_of(RunFolder(tmp_path), 0) == new
    assert log_of(RunFolder(tmp_path), 0, "99") == old
    with pytest.raises(InputError, match=r"--job 98: .* 100, 99"):
        log_of(RunFolder(tmp_path), 0, "98")


def test_a_rank_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no rank has printed yet"):
        log_of(RunFolder(tmp_path), 0)
    for rank in range(3):
        write(tmp_path, f"5_{rank}.log", "", 1000)
    with pytest.raises(InputError, match="--rank 3: there are logs of 3 ranks, 0 to 2"):
        log_of(RunFolder(tmp_path), 3)


def test_the_errors_of_all_ranks(tmp_path: Path) -> None:
    write(tmp_path, "5_0.log", "all well\n", 1000)
    write(tmp_path, "5_10.log", "x\nerror: ten\n", 1000)
    write(tmp_path, "5_2.log", "error: two\nno error: here\n", 1000)
    write(tmp_path, "4_0.log", "error: of before\n", 900)
    assert list(errors(RunFolder(tmp_path))) == ["rank 2: error: two", "rank 10: error: ten"]
    (tmp_path / "state.json").touch()
    assert ltx_launch("logs", tmp_path, "--errors", "--lines", "1").stdout == "rank 10: error: ten\n"


def test_a_tail_gives_each_line_once_and_whole(tmp_path: Path) -> None:
    path = tmp_path / "log"
    tail = Tail(path)
    assert tail.read() == ""
    with path.open("a") as log:
        print("one", file=log, flush=True)
        print("tw", end="", file=log, flush=True)
        assert tail.read() == "one\n"
        print("o", file=log, flush=True)
        assert tail.read() == "two\n"
        print("50 %\r 60", end="", file=log, flush=True)
        assert tail.read() == "50 %\r"
        assert tail.read(rest=True) == " 60"


def test_following_goes_on_with_the_job_that_comes_after(tmp_path: Path) -> None:
    first = write(tmp_path, "5_0.log", "begun\n", 1000)
    (tmp_path / "state.json").touch()
    printed = tmp_path / "printed"
    with printed.open("w") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "launch", "logs", str(tmp_path), "-f"],
            env=environment(PYTHONUNBUFFERED="1"),
            cwd=ROOT,
            stdout=out,
            preexec_fn=hearing,
        )
    try:
        _until(printed, "begun\n")
        with first.open("a") as log:
            log.write("requeued\nlast word")
        _until(printed, "requeued\n")
        write(tmp_path, "6_0.log", "begun again\n", time.time() + 5)
        _until(printed, "begun again\n")
        process.send_signal(2)
        assert process.wait(20) == 0
    finally:
        process.kill()
    assert printed.read_text() == "begun\nrequeued\nlast word--- 6_0.log\nbegun again\n"


def _until(path: Path, text: str, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while text not in path.read_text():
        assert time.monotonic() < deadline, path.read_text()
        time.sleep(0.05)
