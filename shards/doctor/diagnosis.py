"""What the doctor found: for the eye as tables, for machines as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from rich.markup import escape
from rich.table import Table

from shards.counted import counted
from shards.dataset.info import DatasetInfo
from shards.dataset.manifest import Manifest
from shards.doctor.changes import Changes
from shards.doctor.finding import KINDS, UNMENDABLE, Example, Finding, Findings
from shards.efficiency import Efficiency, render_outlook
from shards.storage import Root, is_web
from shards.storage.entry import Entry

_COLORS = {"error": "red", "warning": "yellow"}


@dataclass(frozen=True, eq=False)
class Diagnosis:
    """What was found, and what a repair would make of it.

    ``manifest`` is the one that is there, None when it cannot be read; ``mended`` holds the samples that are
    fit to be trained, in the same order, those new to it last; ``changes`` is how they differ.
    """

    root: Root
    info: DatasetInfo
    findings: Findings
    manifest: Manifest | None
    seen: Entry | None  # the file of the manifest, before anything was read
    mended: Manifest
    changes: Changes
    shards: int
    nbytes: int  # of the payloads read
    passed_over: int  # samples of the shards that an earlier repair left out
    encoded: bool  # by `ltx-shards encode`, which can make a shard again

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong that would stop or spoil training."""
        return not any(finding.severity == "error" for finding in self.findings.listed())

    @property
    def sound_when_mended(self) -> bool:
        """Whether a repair leaves nothing wrong."""
        return not any(self.findings.of(kind).count for kind in UNMENDABLE)


def render(diagnosis: Diagnosis, expected: Sequence[Efficiency]) -> list[Table]:
    """The findings by kind, and what to expect of the plan."""
    findings = diagnosis.findings.listed()
    return [*([_findings(findings)] if findings else []), *([render_outlook(expected)] if expected else [])]


def summary(diagnosis: Diagnosis, repaired: bool) -> list[str]:
    """Two lines in rich's markup: what was looked at, and whether it is sound."""
    samples = 0 if diagnosis.manifest is None else len(diagnosis.manifest)
    looked = (
        f"{escape(str(diagnosis.root))}: {counted(samples, 'sample')} in the manifest, "
        f"{counted(diagnosis.shards, 'shard')}, {diagnosis.nbytes:,} bytes read"
    )
    if diagnosis.passed_over:
        looked += f", {counted(diagnosis.passed_over, 'sample')} left out by an earlier repair"
    if is_web(diagnosis.root):
        looked += "; a web server lists no files, so shards that the manifest does not name are not looked at"
    return [looked, _verdict(diagnosis, repaired)]


def _verdict(diagnosis: Diagnosis, repaired: bool) -> str:
    if diagnosis.sound:
        warnings = len(diagnosis.findings.listed())
        return "[green]sound[/green]" + (f", {counted(warnings, 'warning')}" if warnings else "")
    if not diagnosis.sound_when_mended:
        kinds = [kind for kind in UNMENDABLE if diagnosis.findings.of(kind).count]
        return f"[red]not sound[/red]: {KINDS[kinds[0]].meaning}, which --repair cannot mend"
    if repaired:
        return "[green]sound[/green] after the repair"
    root = escape(str(diagnosis.root))
    keeps = f"`ltx-shards doctor {root} --repair` keeps {counted(len(diagnosis.mended), 'sample')}"
    if diagnosis.encoded and any(diagnosis.findings.of(kind).count for kind in ("shard", "cut")):
        keeps += ", and the same `ltx-shards encode` again makes the missing shards anew"
    return f"[red]not sound[/red]: {keeps}{escape(rewritten(diagnosis))}"


def rewritten(diagnosis: Diagnosis) -> str:
    """What to do with bytes that only the user knows to be good, as the end of a line; empty where there are none."""
    if not diagnosis.findings.of("checksum").count:
        return ""
    return f"; if shards were written again, `ltx-shards index {diagnosis.root}` takes them as they are"


def as_json(diagnosis: Diagnosis, expected: Sequence[Efficiency], repaired: Sequence[str] | None) -> str:
    """All of it as one JSON table; ``repaired`` are the lines of a repair, None where there was none."""
    sound = diagnosis.sound or (repaired is not None and diagnosis.sound_when_mended)
    values = {
        "dataset": str(diagnosis.root),
        "sound": sound,
        "samples": 0 if diagnosis.manifest is None else len(diagnosis.manifest),
        "fit_samples": len(diagnosis.mended),
        "shards": diagnosis.shards,
        "bytes": diagnosis.nbytes,
        "left_out": diagnosis.passed_over,
        "findings": [
            {
                "kind": finding.kind,
                "severity": finding.severity,
                "meaning": KINDS[finding.kind].meaning,
                "count": finding.count,
                "examples": [example._asdict() for example in finding.examples],
            }
            for finding in diagnosis.findings.listed()
        ],
        "efficiency": [asdict(row) for row in expected],
        "repair": None if repaired is None else list(repaired),
    }
    return json.dumps(values, indent=2, ensure_ascii=False)


def _findings(findings: Sequence[Finding]) -> Table:
    table = Table("", "kind", "count", "what it means, and where", title="Findings")
    table.columns[2].justify = "right"
    for finding in findings:
        color = _COLORS[finding.severity]
        places = "\n".join(escape(_place(example)) for example in finding.examples)
        more = finding.count - len(finding.examples)
        places += f"\n... and {more:,} more" if more else ""
        table.add_row(
            f"[{color}]{finding.severity}[/{color}]",
            finding.kind,
            f"{finding.count:,}",
            f"{KINDS[finding.kind].meaning}\n[dim]{places}[/dim]",
            end_section=True,
        )
    return table


def _place(example: Example) -> str:
    where = " ".join(part for part in (example.key, f"({example.shard})" if example.shard else "") if part)
    return f"  {where}: {example.detail}" if example.detail else f"  {where}"
