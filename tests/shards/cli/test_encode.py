from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import shards.prepare.encode.stage as module
from shards.geometry import Bucket
from shards.prepare.encode import request
from shards.prepare.encode.options import EncodeOptions
from shards.prepare.encode.stage import EncodeReport
from shards.prepare.work.workers import Worker
from tests.support.command import run

NEEDED = ("--model", "M", "--out", "out", "--buckets", "8x8x1")


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the command gives to `encode`, in a folder with a table `t.csv` of one clip."""
    monkeypatch.chdir(tmp_path)
    Path("a.mp4").touch()
    Path("t.csv").write_text("caption,media_path,c,m,r\nx,a.mp4,x,a.mp4,\n")
    seen: list[Any] = []

    def encode(*arguments: Any, **named: Any) -> EncodeReport:
        seen.append((arguments, named))
        return EncodeReport(
            Path("t.csv"), "out", 3, 3, {"8x8x1": [3, 3, 3]}, 0, (), 0, (), ("cpu",), False, 1.0
        )

    monkeypatch.setattr(module, "encode", encode)
    return seen


def test_every_option_is_passed_on(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = (
        "--caption-column c --media-column m --reference-column r --id-token TOK --reshape-mode random "
        "--windows 3 --short-videos picture --reference-downscale 2 --rows-per-shard 5 --seed 7 --device cpu "
        "--dtype float16 --vae-tiling --vae-batch 4 --swap-models --decode-threads 3 --patience 2 --retry-failed"
    )
    needed = "--model M --out s3://bucket/out --buckets 8x8x1;16x8x9"
    monkeypatch.setattr(request, "check_request", lambda *_: ("row",))
    assert run(monkeypatch, "encode", "t.csv", *needed.split(), *flags.split()) == 0
    assert "3 samples" in capsys.readouterr().out
    ((arguments, named),) = calls
    assert arguments == (Path("t.csv"), "M", "s3://bucket/out", (Bucket(8, 8, 1), Bucket(16, 8, 9)))
    assert named["options"] == EncodeOptions(
        caption_column="c",
        media_column="m",
        reference_column="r",
        id_token="TOK",
        reshape_mode="random",
        windows=3,
        short_videos="picture",
        reference_downscale=2,
        rows_per_shard=5,
        seed=7,
        device="cpu",
        dtype="float16",
        vae_tiling=True,
        vae_batch=4,
        swap_models=True,
        decode_threads=3,
        patience_s=120.0,
        retry_failed=True,
    )
    assert (named["worker"], named["rows"]) == (Worker(), ("row",))


def test_a_worker_can_be_told_which_one_it_is_and_the_help_says_how(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "encode", "--help") == 0
    assert re.search(r"--worker\b", capsys.readouterr().out)
    assert run(monkeypatch, "encode", "t.csv", *NEEDED, "--worker", "2", "--workers", "4") == 0
    assert calls[0][1]["worker"] == Worker(2, 4, 2)


def test_only_as_many_workers_are_started_as_have_work_and_that_is_said(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "encode", "t.csv", *NEEDED, "--workers", "8") == 0
    assert calls[0][1]["worker"] == Worker(0, 1)
    assert capsys.readouterr().err == (
        "note: 1 unit of 64 rows: 1 of 8 workers has work; see --rows-per-shard\n"
    )


def test_a_worker_that_comes_when_all_is_done_leaves_at_once(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = (*NEEDED, "--worker", "1", "--workers", "2")
    for over, began in ((True, 0), (False, 1)):
        monkeypatch.setattr(request, "is_over", lambda *_, over=over: over)
        assert run(monkeypatch, "encode", "t.csv", *rows) == 0
        assert len(calls) == began


def test_a_request_is_looked_at_before_torch_is_loaded() -> None:
    code = "import shards.cli.encode, shards.prepare.encode.request, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_unset_options_are_those_of_encode(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "encode", "t.csv", *NEEDED) == 0
    assert calls[0][1]["options"] == EncodeOptions()


def test_the_names_of_the_predecessor_work(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = "--model-source M --output-dir out --resolution-buckets 8x8x1 --video-column media_path --batch-size 2"
    assert run(monkeypatch, "encode", "t.csv", *theirs.split(), "--load-text-encoder-in-8bit") == 0
    ((arguments, named),) = calls
    assert arguments == (Path("t.csv"), "M", "out", (Bucket(8, 8, 1),))
    assert named["options"] == replace(EncodeOptions(), vae_batch=2, text_encoder_8bit=True)


def test_all_windows_and_no_references(calls: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(monkeypatch, "encode", "t.csv", *NEEDED, "--windows", "all", "--reference-column", "") == 0
    assert calls[0][1]["options"] == EncodeOptions(windows=None, reference_column=None)


def test_a_rank_of_torchrun_takes_part_and_only_the_first_reports(
    calls: list[Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "5", "WORLD_SIZE": "16", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert run(monkeypatch, "encode", "t.csv", *NEEDED) == 0
    assert calls[0][1]["worker"] == Worker(5, 16, 1)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["t.csv", *NEEDED, "--windows", "some"], "--windows 'some': a number, or all"),
        (["t.csv", *NEEDED, "--windows", "0"], "--windows 0: must be at least 1"),
        (
            ["t.csv", *NEEDED[:-1], "8x8"],
            "--buckets: bucket '8x8' is not WIDTHxHEIGHTxFRAMES, for example 768x448x89",
        ),
        (["t.csv", *NEEDED, "--workers", "0"], "--workers 0: give the number of workers, 1 or more"),
        (["none.csv", *NEEDED], "none.csv: no such dataset file."),
        (
            ["t.csv", *NEEDED, "--caption-column", "text"],
            "t.csv: row 1: no column 'text' (there are: 'caption', 'media_path', 'c', 'm', 'r').",
        ),
    ],
)
def test_what_the_user_got_wrong_is_one_line_and_exit_code_2(
    calls: list[Any],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, "encode", *arguments) == 2
    assert capsys.readouterr().err == f"error: {message}\n"
    assert not calls
