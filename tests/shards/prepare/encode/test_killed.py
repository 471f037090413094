"""Real processes of the command line, killed with SIGKILL again and again: the dataset comes out the same."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.geometry import Bucket
from shards.prepare.encode.stage import EncodeOptions, encode
from tests.support.clips import PALETTE, write_ramp
from tests.support.models import tiny_model
from tests.support.runs import ROOT

ROWS = 18
WAIT_S = 200.0
BUCKETS = "64x64x9,96x64x17"


@pytest.fixture
def table(tmp_path: Path) -> Path:
    rows = []
    for number in range(ROWS):
        frames = 5 if number % 6 == 5 else 9 + number
        for name in (f"{number}.mp4", f"r{number}.mp4"):
            write_ramp(tmp_path / name, frames, 64 + 32 * (number % 2), 64, colour=number % len(PALETTE))
        rows.append({"caption": f"ring {number}", "media_path": f"{number}.mp4"})
        rows[-1]["reference_path"] = f"r{number}.mp4"
    path = tmp_path / "table.json"
    path.write_text(json.dumps(rows))
    return path


def start(table: Path, out: Path, workers: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "shards", "encode", table, "--model", tiny_model(), "--out", out]
    options = ["--buckets", BUCKETS, "--rows-per-shard", 1, "--windows", 2, "--device", "cpu"]
    arguments = [*command, *options, "--workers", workers]
    return subprocess.Popen(list(map(str, arguments)), cwd=ROOT, stderr=subprocess.PIPE, text=True)


def until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition() and process.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def children(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found.append(int(path.parent.name))
    return found


def units(out: Path) -> int:
    folder = out / ".encode" / "units"
    return len(list(folder.glob("*.json"))) if folder.is_dir() else 0


def claims(out: Path) -> list[int]:
    """Numbers of the processes that are at work."""
    found = []
    for path in (out / ".encode" / "claims").glob("[!.]*"):
        try:
            found.append(json.loads(path.read_text())["pid"])
        except (OSError, ValueError):
            continue
    return found


def at_work(process: subprocess.Popen[str], out: Path) -> list[int]:
    return [pid for pid in children(process.pid) if pid in claims(out)]


def files(root: Path) -> dict[str, bytes]:
    """All but what a killed process may leave of its claim on a unit."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.parent.name != "claims"]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


def test_killed_workers_change_no_byte(tmp_path: Path, table: Path) -> None:
    options = EncodeOptions(device="cpu", rows_per_shard=1, windows=2)
    report = encode(table, tiny_model(), tmp_path / "whole", Bucket.parse_list(BUCKETS), options=options)
    assert len(report.failures) == ROWS // 6
    out = tmp_path / "out"

    alone = start(table, out, 1)
    until(lambda: units(out) >= 3, alone)
    alone.kill()
    alone.communicate()
    assert not (out / "dataset.json").exists()
    assert units(out) < ROWS

    before = units(out)
    three = start(table, out, 3)
    victims: list[int] = []

    def well_under_way() -> bool:
        victims[:] = at_work(three, out)
        return bool(victims) and units(out) > before

    until(well_under_way, three)
    for pid in victims[:1]:
        os.kill(pid, signal.SIGKILL)
    _, said = three.communicate(timeout=WAIT_S)
    assert three.returncode == 0, said
    assert not victims or "was killed by SIGKILL; the others go on" in said

    assert files(out) == files(tmp_path / "whole")
    assert encode(table, tiny_model(), out, Bucket.parse_list(BUCKETS), options=options).was_complete
    assert files(out) == files(tmp_path / "whole")
