"""A summary has colours and a terminal's width where a person sees it, and neither in a file."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from tests.support.runs import ROOT, environment

_PRINT = (
    "from rich.table import Table; from shards.cli.printing import print_summary; "
    "print_summary(Table('a' * 50, 'b' * 50))"
)


def printed(stdin_too: bool, **environ: str) -> str:
    """What is printed where standard output is a terminal of 80 columns, and standard input is it too or nothing."""
    ours, theirs = pty.openpty()
    subprocess.run(
        [sys.executable, "-c", _PRINT],
        cwd=ROOT,
        env=environment(TERM="xterm", COLUMNS="80", **environ),
        stdin=theirs if stdin_too else subprocess.DEVNULL,
        stdout=theirs,
        check=True,
    )
    os.close(theirs)
    text = os.read(ours, 1 << 16).decode()
    os.close(ours)
    return text


@pytest.mark.parametrize(("stdin_too", "step"), [(True, {}), (False, {}), (True, {"SLURM_STEP_ID": "0"})])
def test_on_a_terminal_a_table_is_bold_and_narrow(stdin_too: bool, step: dict[str, str]) -> None:
    text = printed(stdin_too, **step)
    assert "\x1b[1m" in text
    assert "a" * 50 not in text


def test_a_task_of_slurm_prints_plain_text_of_full_width() -> None:
    """`srun --unbuffered` gives a task a terminal for its output, and writes into a file what comes from that."""
    text = printed(False, SLURM_STEP_ID="0")
    assert "\x1b" not in text
    assert "a" * 50 in text
    assert "b" * 50 in text
