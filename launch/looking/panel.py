"""How runs are doing, for a terminal: a panel for one, a table for several."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path

from rich.console import JustifyMethod
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from dist_trainer.job import LOCAL
from dist_trainer.rundir import RunFolder
from launch.ended.after import kept_away
from launch.looking.status import Status

_COLOURS = {"RUNNING": "green", "PENDING": "yellow", "DONE": "blue", "FAILED": "red"}


def panel(status: Status) -> Panel:
    """One run in full."""
    rows = Table.grid(padding=(0, 2))
    for name, value in _rows(status):
        if value:
            rows.add_row(f"[bold]{name}[/bold]", escape(value))
    colour = _COLOURS.get(status.state, "default")
    return Panel(rows, title=escape(status.run), border_style=colour, expand=False)


def table(statuses: Sequence[Status]) -> Table:
    """A line for each run."""
    made = Table(box=None, pad_edge=False)
    for heading in ("run", "state", "job", "step", "loss", "tokens/s", "left", "saved", "note"):
        side: JustifyMethod = "left" if heading in ("run", "state", "job", "note") else "right"
        # Runs of a sweep differ at their names' ends.
        wraps = heading in ("run", "note")
        made.add_column(heading, justify=side, overflow="fold" if wraps else "ellipsis", no_wrap=not wraps)
    for status in statuses:
        colour = _COLOURS.get(status.state, "default")
        made.add_row(
            escape(Path(status.run).name),
            f"[{colour}]{status.state}[/{colour}]",
            status.job or "-",
            _step(status),
            _figure(status.loss, ".4f"),
            _figure(status.tokens_per_s, ".0f") if status.lives else "-",
            _span(status.eta_s) or "-",
            "-" if status.checkpoint is None else str(status.checkpoint),
            escape(status.error or status.detail),
        )
    return made


def _rows(status: Status) -> list[tuple[str, str]]:
    saved = ""
    if status.checkpoint is not None:
        saved = f"after step {status.checkpoint}, {_ago(status.checkpoint_time)}"
    speed = ""
    if status.tokens_per_s is not None and status.step_s is not None:
        speed = f"{status.tokens_per_s:.0f} tokens/s, {status.step_s:.2f} s/step"
    return [
        ("state", status.state + (f" ({status.detail})" if status.detail else "")),
        ("job", _job(status)),
        ("nodes", status.nodes),
        ("expected" if status.state == "PENDING" else "since", status.since.replace("T", " ")),
        ("job ends", status.ends.replace("T", " ")),
        ("step", _step(status)),
        ("loss", _figure(status.loss, ".4f") if status.loss is not None else ""),
        ("speed", speed),
        ("time left", _span(status.eta_s)),
        ("checkpoint", saved),
        ("skipped steps", str(status.skipped or "")),
        ("replaced samples", str(status.replaced or "")),
        ("bad nodes", kept_away(RunFolder(Path(status.run)), status.bad_nodes)),
        ("STOP", "is there: `ltx-launch resume` takes it away and goes on" if status.stop else ""),
        ("last error", status.error),
    ]


def _job(status: Status) -> str:
    if not status.job:
        return ""
    if status.job == LOCAL:
        return "on this machine"
    return status.job + (f", queued again {status.restarts} times" if status.restarts else "")


def _step(status: Status) -> str:
    if status.steps is None:
        return str(status.step)
    return f"{status.step} of {status.steps}"


def _figure(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _span(seconds: float | None) -> str:
    return "" if seconds is None else str(timedelta(seconds=round(seconds)))


def _ago(when: float | None) -> str:
    return "" if when is None else f"{_span(max(0.0, time.time() - when))} ago"
