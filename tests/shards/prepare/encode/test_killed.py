"""Real processes of the command line that are killed, or kill themselves: the dataset comes out the same."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from shards.geometry import Bucket
from shards.prepare.encode.stage import EncodeOptions, encode
from shards.prepare.failures import Failure, read_failures
from shards.storage import Folder
from tests.support.clips import PALETTE, write_ramp
from tests.support.faulty import faulty_decoder
from tests.support.killing import children, end, folder_bytes, start
from tests.support.models import tiny_model

ROWS = 8
WAIT_S = 200.0
BUCKETS = "64x64x9,96x64x17"
OPTIONS = EncodeOptions(device="cpu", rows_per_shard=1, windows=2)


def write_table(folder: Path, names: list[str]) -> Path:
    path = folder / "table.json"
    rows = [{"caption": f"ring {name}", "media_path": name} for name in names]
    path.write_text(json.dumps(rows))
    return path


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


def arguments(table: Path, out: Path, *more: object) -> list[object]:
    usual = ["--buckets", BUCKETS, "--rows-per-shard", 1, "--windows", 2, "--device", "cpu"]
    return ["encode", table, "--model", tiny_model(), "--out", out, *usual, *more]


def until(condition: Callable[[], object], process: subprocess.Popen[str]) -> bool:
    """Wait for a condition; whether it came before the process ended."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return True


def units(out: Path) -> int:
    folder = out / ".encode" / "units"
    return len(list(folder.glob("*.json"))) if folder.is_dir() else 0


def holders(out: Path) -> list[int]:
    """Numbers of the processes that are at work."""
    found = []
    for path in (out / ".encode" / "claims").glob("[!.]*"):
        try:
            found.append(json.loads(path.read_text())["pid"])
        except (OSError, ValueError):
            continue
    return found


def at_work(process: subprocess.Popen[str], out: Path) -> list[int]:
    """Those among them that a command started, and itself."""
    there = {process.pid, *children(process.pid)}
    return [pid for pid in holders(out) if pid in there]


def test_killed_workers_change_no_byte(tmp_path: Path, table: Path) -> None:
    """At random moments a worker is killed, and then the first one, with which all end; one alone goes on."""
    report = encode(table, tiny_model(), tmp_path / "whole", Bucket.parse_list(BUCKETS), options=OPTIONS)
    assert len(report.failures) == ROWS // 6
    out, draw = tmp_path / "out", random.Random(11)
    process = start(arguments(table, out, "--workers", 2))
    for workers in (2, 1):
        goal = units(out) + draw.randint(1, 2)
        assert until(lambda goal=goal: units(out) >= goal, process), end(process)[1]
        time.sleep(draw.uniform(0.0, 0.05))
        assert until(partial(at_work, process, out), process)
        others = [pid for pid in at_work(process, out) if pid != process.pid]
        victim = others[0] if others and workers == 2 else process.pid
        os.kill(victim, signal.SIGKILL)
        if victim == process.pid:
            process.communicate(timeout=WAIT_S)
            process = start(arguments(table, out, "--workers", workers))
    code, said = end(process)
    assert code == 0, said
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")
    assert not list((out / ".encode/attempts").iterdir())
    assert encode(table, tiny_model(), out, Bucket.parse_list(BUCKETS), options=OPTIONS).was_complete
    assert folder_bytes(out) == folder_bytes(tmp_path / "whole")


def test_ranks_of_a_launcher_give_the_bytes_of_one_process(tmp_path: Path) -> None:
    """torchrun lets each rank compute with one thread; by itself a process takes one for each core."""
    names = [f"{number}.mp4" for number in range(4)]
    for number, name in enumerate(names):
        write_ramp(tmp_path / name, 17, 96, 64, colour=number)
    table = write_table(tmp_path, names)
    ranks = [
        start(
            arguments(table, tmp_path / "ranks"),
            RANK=str(rank),
            WORLD_SIZE="2",
            LOCAL_RANK=str(rank),
            OMP_NUM_THREADS="1",
        )
        for rank in range(2)
    ]
    alone = start(arguments(table, tmp_path / "alone"), OMP_NUM_THREADS="2")
    for process in (*ranks, alone):
        code, said = end(process)
        assert code == 0, said
    assert folder_bytes(tmp_path / "ranks") == folder_bytes(tmp_path / "alone")
    assert len(list((tmp_path / "ranks/shards").iterdir())) == 4


def test_a_clip_that_kills_or_holds_up_its_process_is_a_failure_and_no_byte_of_the_others_changes(
    tmp_path: Path,
) -> None:
    good = ["a.mp4", "b.mp4", "c.mp4", "d.mp4"]
    for number, name in enumerate((*good, "deadly.mp4", "still.mp4")):
        write_ramp(tmp_path / name, 9, colour=number)
    buckets, options = Bucket.parse_list(BUCKETS), EncodeOptions(device="cpu", rows_per_shard=3)
    encode(write_table(tmp_path, good[:2]), tiny_model(), tmp_path / "first", buckets, options=options)
    encode(write_table(tmp_path, good[2:]), tiny_model(), tmp_path / "second", buckets, options=options)
    table = write_table(tmp_path, [*good[:2], "deadly.mp4", *good[2:], "still.mp4"])
    out = tmp_path / "out"
    options_of = ["--buckets", BUCKETS, "--rows-per-shard", 3, "--device", "cpu", "--patience", 0.05]
    command = ["encode", table, "--model", tiny_model(), "--out", out, *options_of]
    codes, said = [], ""
    for _ in range(3):
        code, text = end(start(command, **faulty_decoder(tmp_path / "faults")))
        codes.append(code)
        said += text
    assert codes == [-signal.SIGSEGV, 1, 0], said
    assert (
        "still.mp4: nothing came of it for 0.05 minutes, so this worker ends. Another goes on with its rows, "
        "or the same command does\n"
    ) in said
    assert read_failures(Folder(out)) == (
        Failure("deadly.mp4", "the process died while reading it: SIGSEGV"),
        Failure("still.mp4", "nothing came of it for 3 s"),
    )
    for number, folder in enumerate(("first", "second")):
        expected = (tmp_path / folder / "shards/000000.tar").read_bytes()
        assert (out / f"shards/{number:06d}.tar").read_bytes() == expected
