from __future__ import annotations

from pathlib import Path

from rich.console import Console

from shards.prepare.encode.report import EncodeReport, render
from shards.prepare.failures import Failure


def printed(report: EncodeReport) -> str:
    console = Console(width=160)
    with console.capture() as capture:
        console.print(render(report))
    return capture.get()


def test_a_report_counts_samples_captions_and_the_first_twenty_rows_left_out() -> None:
    failures = tuple(Failure(f"{number}.mp4", f"reason [{number}]") for number in range(23))
    text = printed(
        EncodeReport(
            Path("t.csv"),
            "out",
            7,
            {"8x8x1": 2, "8x8x9": 5},
            failures,
            3,
            tuple("abcd"),
            ("A", "B"),
            False,
            61.4,
        )
    )
    lines = text.splitlines()
    assert lines[0] == "out: 7 samples in 61 s"
    assert text.index("8x8x9") < text.index("8x8x1")
    assert "3 captions are too long for the text encoder and were cut" in lines
    assert (
        "t.csv: 4 captions are empty (a, b, c, ...): run `ltx-shards caption t.csv` to have them written, and encode "
        "into another folder"
    ) in lines
    assert "encoded on A, B: another run may differ from this one in the last bits" in lines
    assert "23 left out, all listed in out/failures.jsonl" in lines
    assert "19.mp4" in text
    assert "reason [19]" in text
    assert "20.mp4" not in text
    assert "and 3 more" in text


def test_a_complete_dataset_is_said_to_be_complete() -> None:
    text = printed(EncodeReport(Path("t.csv"), "s3://b/out", 7, {"8x8x9": 7}, (), 0, (), ("A",), True, 1.0))
    assert text.startswith("s3://b/out is complete: 7 samples, nothing left to do\n")
    assert "left out" not in text
    assert "captions" not in text
