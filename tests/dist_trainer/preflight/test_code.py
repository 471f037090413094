from __future__ import annotations

import shutil
from pathlib import Path

import torch

from dist_trainer.preflight.code import ROOT, sources, versions


def test_one_byte_of_one_source_file_changes_the_hash(tmp_path: Path) -> None:
    for package in ("shards", "dist_trainer", "launch"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    before = sources(tmp_path)
    assert before == versions()["code"]
    file = tmp_path / "shards" / "pack.py"
    file.write_bytes(file.read_bytes() + b"\n")
    assert sources(tmp_path) != before


def test_versions_of_what_computes_are_told() -> None:
    found = versions()
    assert found["torch"] == torch.__version__
    assert all(found[name] for name in ("python", "deepspeed", "diffusers", "peft"))
