from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from shards.cli import main
from shards.dataset.manifest import MANIFEST_NAME
from tests.support.datasets import write_dataset


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["ltx-shards", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return int(stop.value.code or 0)


def test_index_rebuilds_the_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = write_dataset(tmp_path, 5)
    (tmp_path / MANIFEST_NAME).unlink()
    assert run(monkeypatch, "index", tmp_path) == 0
    assert (tmp_path / MANIFEST_NAME).is_file()
    assert f"5 samples in 1 shard, fingerprint {dataset.manifest.fingerprint}" in capsys.readouterr().out


def test_index_takes_a_description_from_another_dataset(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset(tmp_path / "a", 3)
    write_dataset(tmp_path / "b", 3)
    (tmp_path / "b" / "dataset.json").unlink()
    assert run(monkeypatch, "index", tmp_path / "b") == 2
    assert run(monkeypatch, "index", tmp_path / "b", "--like", tmp_path / "a") == 0
    assert (tmp_path / "b/dataset.json").read_bytes() == (tmp_path / "a/dataset.json").read_bytes()


def test_stats_are_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path, 5)
    assert run(monkeypatch, "stats", tmp_path) == 0
    assert "5 (3 images, 0 with a reference)" in capsys.readouterr().out


def test_the_plan_is_shown_for_every_number_of_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path, 24)
    assert run(monkeypatch, "plan", tmp_path, "--ranks", "2,16", "--samples-per-step", 8) == 0
    printed = capsys.readouterr().out
    assert "micro-" in printed
    assert "16 ranks" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["stats", "{}/nowhere"], "nowhere does not exist"),
        (["index", "{}/nowhere"], "holds no .tar file"),
        (
            ["index", "{0}", "--like", "{0}/no"],
            "/no: no dataset.json is there: give the folder of a dataset of the",
        ),
        (["plan", "{}", "--ranks", "2"], "exactly one of --samples-per-step and --tokens-per-step"),
        (["plan", "{}", "--ranks", "2,x", "--samples-per-step", "4"], "--ranks '2,x'"),
        (["plan", "{}", "--ranks", "0", "--samples-per-step", "4"], "--ranks '0'"),
        (["plan", "{}", "--ranks", "2", "--samples-per-step", "4", "--mix", "odd"], "--mix 'odd'"),
        (["plan", "{}", "--ranks", "2", "--samples-per-step", "4", "--cap", "17"], "clips/sample_00001"),
        (["encode", "x.csv", "--model", "m", "--out", "{}/o", "--buckets", "8x8"], "bucket '8x8'"),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_exit_code_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    write_dataset(tmp_path, 5)
    assert run(monkeypatch, *(argument.format(tmp_path) for argument in arguments)) == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: ")
    assert message in errors
    assert errors.count("\n") == 1


def test_a_damaged_shard_is_one_line_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_dataset(tmp_path, 5)
    path = tmp_path / "shards/000000.tar"
    path.write_bytes(path.read_bytes()[:1000])
    assert run(monkeypatch, "index", tmp_path) == 2
    assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: shards/000000.tar")


def test_the_module_is_the_command() -> None:
    result = subprocess.run([sys.executable, "-m", "shards", "nonsense"], capture_output=True, text=True)
    assert result.returncode == 2
    assert "No such command" in result.stderr
