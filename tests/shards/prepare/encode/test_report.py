from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from shards.prepare.encode.report import EncodeReport, render
from shards.prepare.failures import Failure


def printed(report: EncodeReport) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(render(report))
    return capture.get()


REPORT = EncodeReport(
    table=Path("t.csv"),
    out="out",
    samples=7,
    listed=7,
    buckets={"8x8x1": [2, 2.0, 2.0], "8x8x9": [5, 4.0, 2.5]},
    pictures=0,
    failures=(),
    cut_captions=0,
    empty_captions=(),
    hardware=("A",),
    was_complete=False,
    seconds=61.4,
)


def test_a_report_counts_samples_captions_and_the_first_twenty_rows_left_out() -> None:
    failures = tuple(Failure(f"{number}.mp4", f"reason [{number}]") for number in range(23))
    report = replace(
        REPORT,
        failures=failures,
        cut_captions=3,
        empty_captions=tuple("abcd"),
        hardware=("A", "B"),
        pictures=2,
    )
    text = printed(report)
    lines = text.splitlines()
    assert lines[0] == "out: 7 samples in 61 s"
    rows = [[cell.strip() for cell in line.strip("│").split("│")] for line in lines if line.startswith("│")]
    assert rows[:2] == [
        ["8x8x9", "5", "20% of the picture, 50% of the time"],
        ["8x8x1", "2", "0% of the picture, 0% of the time"],
    ]
    assert "2 videos became pictures, of a single frame: they fill no video bucket of --buckets" in lines
    assert "3 captions too long for the text encoder: cut at its longest length" in lines
    assert (
        "t.csv: 4 empty captions (a, b, c, ...): run `ltx-shards caption t.csv` to have them written, and encode "
        "into another folder"
    ) in lines
    assert "encoded on A, B: another run may differ from this one in the last bits" in lines
    assert "23 left out, all listed in out/failures.jsonl" in lines
    assert "19.mp4" in text
    assert "reason [19]" in text
    assert "20.mp4" not in text
    assert "and 3 more" in text


@pytest.mark.parametrize(
    ("samples", "listed", "title"),
    [
        (7, 7, "7 samples, nothing left to do"),
        (1, 1, "1 sample, nothing left to do"),
        (
            7,
            5,
            "7 samples encoded, nothing left to do; its manifest has 5, as another command wrote it since "
            "(ltx-shards doctor --repair, which leaves samples out)",
        ),
        (
            7,
            9,
            "7 samples encoded, nothing left to do; its manifest has 9, as another command wrote it since "
            "(ltx-shards index --append)",
        ),
    ],
)
def test_a_complete_dataset_is_said_to_be_complete_and_what_its_manifest_has(
    samples: int, listed: int, title: str
) -> None:
    text = printed(replace(REPORT, out="s3://b/out", samples=samples, listed=listed, was_complete=True))
    assert text.startswith(f"s3://b/out is complete: {title}\n")
    assert "left out" not in text
    assert "caption" not in text
    assert "pictures" not in text
