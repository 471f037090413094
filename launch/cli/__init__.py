"""ltx-launch: start runs, look after them. One file per group of commands."""

from __future__ import annotations

import sys

import typer

from launch.cli import after, here, preflight, runs, slurm
from shards.errors import InputError

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Start training runs and look after them.")
for group in (here.app, after.app, preflight.app, slurm.app, runs.app):
    app.registered_commands += group.registered_commands


def main() -> None:
    """Console entry point: bad input ends with one line and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
