"""What an encode run did, as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from shards.prepare.failures import FAILURES_NAME, Failure, failures_table
from shards.storage import Root

_SHOWN = 3  # clips named in a line


@dataclass(frozen=True)
class EncodeReport:
    """What became of a table, by the work of all workers.

    `buckets` counts samples, `cut_captions` rows whose caption is too long for the text encoder; `empty_captions`
    are the clips of rows without one, `hardware` the kinds of GPU or CPU. `was_complete`: there was nothing left to
    do. `seconds` are this worker's.
    """

    table: Path
    out: Root
    samples: int
    buckets: dict[str, int]
    failures: tuple[Failure, ...]
    cut_captions: int
    empty_captions: Sequence[str]
    hardware: Sequence[str]
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
        parts.append(Text(_empty(report)))
    if len(report.hardware) > 1:
        kinds = ", ".join(report.hardware)
        parts.append(Text(f"encoded on {kinds}: another run may differ from this one in the last bits"))
    if report.failures:
        title = f"{len(report.failures)} left out, all listed in {report.out}/{FAILURES_NAME}"
        parts.append(failures_table(report.failures, title))
    return Group(*parts)


def _empty(report: EncodeReport) -> str:
    first = ", ".join(report.empty_captions[:_SHOWN])
    more = ", ..." if len(report.empty_captions) > _SHOWN else ""
    return (
        f"{report.table}: {len(report.empty_captions)} captions are empty ({first}{more}): run "
        f"`ltx-shards caption {report.table}` to have them written, and encode into another folder"
    )


def _title(report: EncodeReport) -> str:
    if report.was_complete:
        return f"{report.out} is complete: {report.samples} samples, nothing left to do"
    return f"{report.out}: {report.samples} samples in {report.seconds:.0f} s"
