"""MosaicML's own library: shards written by it, and read by its StreamingDataset in a process of its own.

That class keeps objects in /dev/shm and reads a launcher's variables, so it gets a process without them.

python -m tests.support.mosaic FOLDER
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest

from shards.formats.mds import streaming
from tests.support.runs import ROOT, environment

SHARED = Path("/dev/shm")


def require() -> None:
    """Skip, and say so, where the library is not installed."""
    if importlib.util.find_spec("streaming") is None:
        pytest.skip("MDS IS NOT TESTED: mosaicml-streaming is not installed; run `make install`")


def write(
    folder: Path, columns: Mapping[str, str], samples: Iterable[Mapping[str, Any]], **settings: Any
) -> Path:
    """Shards by the library's MDSWriter; `settings` are its own."""
    with streaming().MDSWriter(columns=dict(columns), out=str(folder), **settings) as writer:
        for sample in samples:
            writer.write(dict(sample))
    return folder


def read(folder: Path, scratch: Path) -> list[dict[str, Any]]:
    """Samples of a folder with index.json as StreamingDataset gives them, in order: key, json, sha256 of the tensors.

    `scratch` is for its locks. What a killed process leaves in /dev/shm is removed.
    """
    before = set(os.listdir(SHARED))
    command = [sys.executable, "-m", "tests.support.mosaic", str(folder)]
    try:
        done = subprocess.run(
            command,
            env=environment(TMPDIR=str(scratch)),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
    except subprocess.TimeoutExpired:
        for name in set(os.listdir(SHARED)) - before:
            if re.match(r"\d{6}_", name):
                (SHARED / name).unlink(missing_ok=True)
        raise
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def _main(folder: str) -> None:
    for sample in streaming().StreamingDataset(local=folder, shuffle=False, batch_size=1):
        tensors = hashlib.sha256(sample.pop("safetensors")).hexdigest()
        print(json.dumps({**sample, "json": json.loads(sample["json"]), "tensors": tensors}))


if __name__ == "__main__":
    _main(sys.argv[1])
