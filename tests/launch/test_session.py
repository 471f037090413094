"""A command ends with all it has started, whoever is told to end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launch import session
from tests.support.runs import ROOT, environment, hearing

# As DeepSpeed's launcher: one that dies of TERM, over one in a group of its own, which saves.
_RANK = """
import os, pathlib, signal, sys, time
os.setpgid(0, 0)
def save(number, frame):
    time.sleep(0.5)
    pathlib.Path('saved').touch()
    sys.exit()
signal.signal(signal.SIGTERM, save)
pathlib.Path('rank').write_text(str(os.getpid()))
time.sleep(100)
"""
_LAUNCHER = "import subprocess, sys; subprocess.run([sys.executable, 'rank.py'])"
_OUTER = f"""
import os, sys
from launch.session import run
run([sys.executable, '-c', {_LAUNCHER!r}], os.environ)
"""


@pytest.fixture
def outer(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that runs a launcher with a rank, in `tmp_path`."""
    (tmp_path / "rank.py").write_text(_RANK)
    process = subprocess.Popen(
        [sys.executable, "-c", _OUTER],
        cwd=tmp_path,
        env=environment(PYTHONPATH=str(ROOT)),
        preexec_fn=hearing,
    )
    until(lambda: (tmp_path / "rank").is_file() and (tmp_path / "rank").read_text() != "")
    yield process
    process.kill()
    process.wait()


def until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_what_ends_the_caller_ends_all_that_it_started(
    outer: subprocess.Popen[bytes], tmp_path: Path, number: signal.Signals
) -> None:
    outer.send_signal(number)
    assert outer.wait(60) in (128 + number, -number)
    assert (tmp_path / "saved").exists(), "the rank had the time to save"


def test_a_command_that_fails_says_so_and_signals_mean_what_they_did() -> None:
    before = signal.getsignal(signal.SIGTERM)
    session.run(["true"], os.environ)
    with pytest.raises(subprocess.CalledProcessError) as error:
        session.run(["bash", "-c", "exit 3"], os.environ)
    assert error.value.returncode == 3
    assert signal.getsignal(signal.SIGTERM) is before


def test_under_nohup_a_terminal_that_closes_ends_nothing() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # no fixture puts this one back
    try:
        with session.started(["true"], os.environ):
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
