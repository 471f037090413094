"""The command ``ltx-shards``: make, check, rebuild and look at datasets. Heavy imports are inside the commands."""

from __future__ import annotations

import sys

import typer

from shards.cli.dataset import index, plan, stats
from shards.cli.encode import encode
from shards.errors import InputError, ShardError

app = typer.Typer(
    name="ltx-shards",
    help="Datasets for LTX training, from raw videos to checked shards. The commands come in the order of use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(encode)
app.command()(index)
app.command()(stats)
app.command()(plan)


def main() -> None:
    """Entry point of ``ltx-shards``: a user's mistake is one line and exit code 2, no traceback."""
    try:
        app()
    except (InputError, ShardError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
