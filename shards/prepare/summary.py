"""What an encode run did, as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Group
from rich.table import Table
from rich.text import Text

from shards.prepare.assign import Failure

if TYPE_CHECKING:
    from shards.prepare.encode import EncodeReport

FAILURES_NAME = "failures.jsonl"
_LISTED = 20


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
        parts.append(left_out(report.failures, f"{report.out}/{FAILURES_NAME}"))
    return Group(*parts)


def left_out(failures: Sequence[Failure], listed: str) -> Group:
    """The first failures with their reasons; `listed` names the file that has them all."""
    table = Table("left out", "reason")
    for failure in failures[:_LISTED]:
        table.add_row(*map(Text, failure))
    if len(failures) > _LISTED:
        table.add_row("...", f"and {len(failures) - _LISTED} more")
    return Group(Text(f"{len(failures)} left out, all listed in {listed}"), table)


def _title(report: EncodeReport) -> str:
    if report.was_complete:
        return f"{report.out} is complete: {report.samples} samples, nothing left to do"
    return f"{report.out}: {report.samples} samples in {report.seconds:.0f} s"
