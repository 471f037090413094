"""What an encode run did, as a person reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Group
from rich.table import Table
from rich.text import Text

from shards.counted import counted
from shards.prepare.failures import FAILURES_NAME, Failure, failures_table
from shards.storage import Root

_SHOWN = 3  # clips named in a line


@dataclass(frozen=True)
class EncodeReport:
    """What became of a table, by the work of all workers.

    `buckets` has the samples of each, and the sums over them of the shares of picture and time that are kept.
    `pictures` counts videos that became such, `cut_captions` rows whose caption is too long for the text encoder;
    `empty_captions` are the clips of rows without one, `hardware` the kinds of GPU or CPU. `was_complete`: there was
    nothing left to do; the manifest, which has `listed` samples, may be another command's then. `seconds` are this
    worker's.
    """

    table: Path
    out: Root
    samples: int
    listed: int
    buckets: dict[str, Sequence[float]]
    pictures: int
    failures: tuple[Failure, ...]
    cut_captions: int
    empty_captions: Sequence[str]
    hardware: Sequence[str]
    was_complete: bool
    seconds: float


def render(report: EncodeReport) -> Group:
    """Samples per bucket and what they lose, what is worth a look, and the first rows left out with their reasons."""
    table = Table("bucket", "samples", "cut away on average")
    table.columns[1].justify = "right"
    for bucket, (count, picture, time) in sorted(report.buckets.items(), key=lambda item: -item[1][0]):
        lost = f"{1 - picture / count:.0%} of the picture, {1 - time / count:.0%} of the time"
        table.add_row(bucket, f"{count:.0f}", lost)
    parts: list[Table | Text | Group] = [Text(_title(report)), table]
    if report.pictures:
        videos = f"{counted(report.pictures, 'video')} became pictures, of a single frame"
        parts.append(Text(f"{videos}: they fill no video bucket of --buckets"))
    if report.cut_captions:
        captions = f"{counted(report.cut_captions, 'caption')} too long for the text encoder"
        parts.append(Text(f"{captions}: cut at its longest length"))
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
        f"{report.table}: {counted(len(report.empty_captions), 'empty caption')} ({first}{more}): run "
        f"`ltx-shards caption {report.table}` to have them written, and encode into another folder"
    )


def _title(report: EncodeReport) -> str:
    samples = counted(report.samples, "sample")
    if not report.was_complete:
        return f"{report.out}: {samples} in {report.seconds:.0f} s"
    if report.listed == report.samples:
        return f"{report.out} is complete: {samples}, nothing left to do"
    other = (
        "doctor --repair, which leaves samples out" if report.listed < report.samples else "index --append"
    )
    return (
        f"{report.out} is complete: {samples} encoded, nothing left to do; its manifest has {report.listed:,}, as "
        f"another command wrote it since (ltx-shards {other})"
    )
