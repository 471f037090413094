"""What a process prints may be lost; the process goes on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# Prints until it is told that its reader has left, and once more; then leaves its mark.
PRINTS = """
import sys
from pathlib import Path
from dist_trainer.output import print_on

print_on()
print("first", flush=True)
sys.stdin.read()
print("second", flush=True)
print("third", file=sys.stderr, flush=True)
Path(sys.argv[1]).touch()
"""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "went_on"


def start(mark: Path, stdout: int, stderr: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", PRINTS, str(mark)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, stdout=stdout, stderr=stderr)


def test_it_goes_on_when_the_reader_of_its_output_leaves(mark: Path) -> None:
    process = start(mark, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert process.stdout is not None
    assert process.stdin is not None
    assert process.stdout.readline() == "first\n"
    process.stdout.close()
    process.stdin.close()
    assert process.wait(30) == 0
    assert mark.exists()


def test_it_goes_on_when_the_disk_of_its_output_is_full(mark: Path) -> None:
    with open("/dev/full", "wb") as full:
        process = start(mark, stdout=full.fileno(), stderr=full.fileno())
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert mark.exists()


def test_what_is_read_is_what_was_printed(mark: Path) -> None:
    process = start(mark, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.communicate(timeout=30) == ("first\nsecond\n", "third\n")
