"""Long work shows on a terminal how much of it is done, and ends with a summary."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import subprocess
from pathlib import Path

import pytest

from shards.prepare.tables.rows import write_rows
from tests.support.chat import chat_server
from tests.support.clips import write_ramp
from tests.support.datasets import write_dataset
from tests.support.footage import write_scenes
from tests.support.killing import ROOT, command
from tests.support.models import tiny_model, tiny_source
from tests.support.precomputed import save_sample

_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(*arguments: object) -> str:
    """What `ltx-shards ARGUMENTS` shows on a terminal, in the order it comes. Fails where the command does."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command(*arguments),
        cwd=ROOT,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while part := os.read(ours, 1 << 16):
            shown += part
    except OSError:
        pass  # the last one closed the other end
    finally:
        os.close(ours)
    text = _CONTROL.sub("", shown.decode())
    assert process.wait() == 0, text
    return text


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Inputs of every command: three clips with captions, two videos, two datasets, a predecessor's folder."""
    place = tmp_path_factory.mktemp("place")
    names = [f"{number}.mp4" for number in range(3)]
    for number, name in enumerate(names):
        write_ramp(place / name, 9, colour=number)
        save_sample(place / ".precomputed", name, channels=8, width=48, seed=number)
    write_rows(place / "t.jsonl", [{"media_path": name, "caption": "a red car"} for name in names])
    write_rows(place / "bare.jsonl", [{"media_path": name, "caption": ""} for name in names])
    for number in range(2):
        write_scenes(place / f"raw/{number}.mp4", (20, 20), first=2 * number)
    info = write_dataset(place / "data0", 3, channels=8, vae=tiny_source(), shard_bytes=1).info
    keys = [f"other/{number}" for number in range(3)]
    write_dataset(place / "data1", 3, channels=8, seed=1, keys=keys, shard_bytes=1, info=info)
    return place


@pytest.mark.parametrize(
    ("arguments", "count", "summary"),
    [
        ("split {}/raw --out {}/clips", 2, "clips/dataset.jsonl"),
        ("caption {}/bare.jsonl --endpoint {url}", 3, "bare.jsonl"),
        ("reference {}/t.jsonl --kind canny --column edges", 3, "t.jsonl: 3 references in "),
        ("encode {}/t.jsonl --model {model} --out {}/encoded --buckets 64x64x9", 3, "3 samples"),
        ("import {}/.precomputed --out {}/imported", 3, "imported: 3 samples"),
        ("index {}/data0", 3, "data0: 3 samples in 3 shards"),
        ("merge {}/data0 {}/data1 --out {}/merged", 6, "merged: 6 samples in 6 shards"),
        ("doctor {}/data0", 3, "sound"),
        ("decode {}/data0 --model {model} --out {}/look", 3, "look: 3 samples"),
        ("convert {}/data0 --to mds --out {}/mds", 3, "mds: 3 samples"),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
def test_a_bar_counts_to_the_end_and_a_summary_follows(
    place: Path, arguments: str, count: int, summary: str
) -> None:
    if arguments.startswith("convert") and importlib.util.find_spec("streaming") is None:
        pytest.skip("needs mosaicml-streaming")
    with chat_server() as server:
        filled = arguments.replace("{url}", server.url).replace("{model}", str(tiny_model()))
        shown = on_terminal(*filled.replace("{}", str(place)).split())
    # The time it took stands behind the count.
    counted = re.search(rf" {count}/{count} \d:\d\d:\d\d", shown)
    assert counted, shown
    assert summary in shown[counted.end() :], shown
