"""How a trial of the nodes is told: in a job in one line, to a person in a table. Warnings follow either."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from dist_trainer.preflight.finding import Finding


def tell(figures: Mapping[str, str], warnings: Sequence[Finding]) -> None:
    """Print for a job's log."""
    print("preflight: " + "; ".join(f"{name} {text}" for name, text in figures.items()), flush=True)
    for finding in warnings:
        print(f"preflight: warning: {finding.text}", flush=True)


def show(figures: Mapping[str, str], warnings: Sequence[Finding], console: Console) -> None:
    """Print for a person."""
    table = Table(show_header=False)
    for name, text in figures.items():
        table.add_row(name, text)
    console.print(table)
    for finding in warnings:
        console.print(f"warning: {finding.text}", markup=False, soft_wrap=True)
