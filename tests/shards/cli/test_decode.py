"""The command `ltx-shards decode`: its options and its summary."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

import shards.prepare.decode.stage as module
from shards.prepare.decode.options import DecodeOptions
from shards.prepare.decode.stage import DecodeReport, decode
from shards.prepare.media.video import probe
from shards.prepare.tables.rows import read_rows
from tests.support.command import run
from tests.support.datasets import write_dataset
from tests.support.footage import tree
from tests.support.killing import finish, kill_when
from tests.support.models import tiny_model, tiny_source


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command gives to `decode`."""
    seen: list[Any] = []

    def decode(*arguments: Any, on_sample: Any) -> DecodeReport:
        seen.append(arguments)
        on_sample(1, 1)
        return DecodeReport(Path("out"), ("a.mp4",), 1, (("b", "checksum"),), "another VAE")

    monkeypatch.setattr(module, "decode", decode)
    return seen


def test_every_option_is_passed_on(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "--keys a,b --keys c --seed 7 --decode-timestep 0.05 --decode-noise-scale 0.025 --device cpu "
        "--dtype float32 --vae-tiling --force --crf 3"
    )
    assert run(monkeypatch, "decode", "s3://bucket/data", "--model", "M", "--out", "out", *flags.split()) == 0
    (arguments,) = calls
    assert arguments[:3] == ("s3://bucket/data", "M", Path("out"))
    assert arguments[3] == DecodeOptions(
        keys=("a", "b", "c"),
        seed=7,
        timestep=0.05,
        noise_scale=0.025,
        device="cpu",
        dtype="float32",
        vae_tiling=True,
        force=True,
        crf=3,
    )
    printed = capsys.readouterr()
    assert "out: 1 samples, with their captions in index.jsonl, 1 of them were there" in printed.out
    assert "note: another VAE" in printed.err
    assert "left out: checksum" in printed.err


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("", DecodeOptions()),
        ("--first 3", DecodeOptions(first=3)),
        ("--random 4 --seed 1", DecodeOptions(random=4, seed=1)),
    ],
)
def test_samples_are_chosen(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, flags: str, options: DecodeOptions
) -> None:
    assert run(monkeypatch, "decode", "data", "--model", "M", "--out", "out", *flags.split()) == 0
    assert calls[0][3] == options


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--first 3 --random 4", "give one of --keys, --first and --random"),
        ("--keys a --first 3", "give one of --keys, --first and --random"),
        ("--first 0", "--first 0 must be at least 1"),
        ("--keys sample_00001", "has no sample 'sample_00001'; there are 'clips/sample_00001'"),
        ("", "was encoded with the VAE vae-0 of random, that of"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    flags: str,
    message: str,
) -> None:
    write_dataset(tmp_path / "data", 3, channels=8)
    arguments = (tmp_path / "data", "--model", tiny_model(), "--out", tmp_path / "out", *flags.split())
    assert run(monkeypatch, "decode", *arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_samples_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_dataset(tmp_path / "data", 3, channels=8, vae=tiny_source())
    out = tmp_path / "out"
    assert (
        run(monkeypatch, "decode", tmp_path / "data", "--model", tiny_model(), "--out", out, "--first", 2)
        == 0
    )
    assert probe(out / "clips/sample_00001.mp4")[:3] == (5, 48, 64)
    assert (out / "clips/sample_00000.png").is_file()


def test_killed_at_any_moment_it_goes_on_where_it_was(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data", 24, channels=8, grids=((3, 8, 8),), vae=tiny_source())
    decode(tmp_path / "data", tiny_model(), tmp_path / "whole", DecodeOptions(first=24))
    out = tmp_path / "out"
    arguments = ["decode", tmp_path / "data", "--model", tiny_model(), "--first", 24, "--out", out]

    def made() -> int:
        return len(list(out.glob("clips/*.mp4")))

    kill_when(arguments, lambda: made() >= 5)
    rows = read_rows(out / "index.jsonl")
    assert made() - 1 <= len(rows) < 24
    long_ago = time.time() - 7200
    for left in out.glob(".decode-*"):
        os.utime(left, (long_ago, long_ago))
    for left in out.glob(".index.jsonl.*.tmp"):  # killed before it was whole
        left.unlink()
    printed = finish(arguments)
    assert f"24 samples, with their captions in index.jsonl, {len(rows)} of them were there" in printed
    assert tree(out) == tree(tmp_path / "whole")
    assert not list(out.glob(".decode-*"))
