"""What an encode run did, as a person reads it."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from shards.prepare.failures import FAILURES_NAME, Failure, failures_table
from shards.storage import Root


@dataclass(frozen=True)
class EncodeReport:
    """What became of a table, by the work of all workers.

    `buckets` counts samples, `cut_captions` rows whose caption is too long for the text encoder,
    `empty_captions` rows without one. `was_complete`: there was nothing left to do. `seconds` are this worker's.
    """

    out: Root
    samples: int
    buckets: dict[str, int]
    failures: tuple[Failure, ...]
    cut_captions: int
    empty_captions: int
    was_complete: bool
    seconds: float


def render(report: EncodeReport) -> Group:
    """Samples per bucket, captions worth a look, and the first rows that were left out with their reasons."""
    table = Table("bucket", "samples")
    table.columns[1].justify = "right"
    for bucket, count in sorted(report.buckets.items(), key=lambda item: -item[1]):
        table.add_row(bucket, str(count))
    parts: list[Table | Text | Group] = [Text(_title(report)), table]
    if report.cut_captions:
        parts.append(Text(f"{report.cut_captions} captions are too long for the text encoder and were cut"))
    if report.empty_captions:
        parts.append(Text(f"{report.empty_captions} captions are empty"))
    if report.failures:
        title = f"{len(report.failures)} left out, all listed in {report.out}/{FAILURES_NAME}"
        parts.append(failures_table(report.failures, title))
    return Group(*parts)


def _title(report: EncodeReport) -> str:
    if report.was_complete:
        return f"{report.out} is complete: {report.samples} samples, nothing left to do"
    return f"{report.out}: {report.samples} samples in {report.seconds:.0f} s"
