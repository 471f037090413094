"""Real processes that encode into an object store, killed: the next run makes the same dataset."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

from shards.geometry import Bucket
from shards.prepare.encode.stage import EncodeOptions, encode
from shards.storage import Storage, open_storage
from tests.support.clips import write_ramp
from tests.support.models import tiny_model
from tests.support.runs import ROOT

ROWS = 8
WAIT_S = 100.0


def units(storage: Storage) -> int:
    return len(storage.list(".encode/units"))


def files(storage: Storage) -> dict[str, bytes]:
    """The dataset, without the notes on who did what of it."""
    return {
        entry.path: storage.read(entry.path)
        for entry in storage.list()
        if not entry.path.startswith(".encode/")
    }


def test_killed_workers_leave_nothing_in_a_bucket_that_changes_the_dataset(
    tmp_path: Path, bucket: str
) -> None:
    rows = []
    for number in range(ROWS):
        write_ramp(tmp_path / f"{number}.mp4", 9 + number, colour=number % 7)
        rows.append({"caption": f"ring {number}", "media_path": f"{number}.mp4"})
    table = tmp_path / "table.json"
    table.write_text(json.dumps(rows))
    options = EncodeOptions(device="cpu", rows_per_shard=1)
    buckets = Bucket.parse_list("64x64x9")
    encode(table, tiny_model(), tmp_path / "whole", buckets, options=options)

    out = f"{bucket}/some/set"
    storage = open_storage(out)
    arguments = ["encode", table, "--model", tiny_model(), "--out", out, "--buckets", "64x64x9"]
    arguments += ["--rows-per-shard", 1, "--device", "cpu", "--workers", 2]
    command = [sys.executable, "-m", "shards", *map(str, arguments)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + WAIT_S
        while units(storage) < 2 and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
        _, said = process.communicate()
    assert 2 <= units(storage) < ROWS, said
    assert storage.stat("dataset.json") is None

    encode(table, tiny_model(), out, buckets, options=options)
    assert files(storage) == files(open_storage(tmp_path / "whole"))
    assert storage.list(".encode/claims") == []
    assert encode(table, tiny_model(), out, buckets, options=options).was_complete
