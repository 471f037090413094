"""The command ``ltx-shards``: make, check, rebuild and look at datasets. Heavy imports are inside the commands."""

from __future__ import annotations

import errno
import sys

import typer

from shards.cli.caption import caption
from shards.cli.convert import convert
from shards.cli.dataset import index, merge, plan, stats
from shards.cli.decode import decode
from shards.cli.doctor import doctor
from shards.cli.encode import encode
from shards.cli.importing import import_folder
from shards.cli.reference import reference
from shards.cli.split import split
from shards.errors import InputError, ShardError

app = typer.Typer(
    name="ltx-shards",
    help="Datasets for LTX training, from raw videos to checked shards. The commands come in the order of use.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command()(split)
app.command()(caption)
app.command()(reference)
app.command()(encode)
app.command("import")(import_folder)
app.command()(index)
app.command()(merge)
app.command()(doctor)
app.command()(stats)
app.command()(plan)
app.command()(decode)
app.command()(convert)


_MAKE_ROOM = "make room and run the same command again"
_ASK = "see to the permissions and run the same command again"
_ADVICE = {
    errno.ENOSPC: _MAKE_ROOM,
    errno.EDQUOT: _MAKE_ROOM,
    errno.EACCES: _ASK,
    errno.EPERM: _ASK,
    errno.EROFS: "give a folder that can be written",
}


def main() -> None:
    """Entry point of ``ltx-shards``: a user's mistake is one line and exit code 2, no traceback."""
    try:
        app()
    except (InputError, ShardError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:  # a full disk, a folder of somebody else
        where = f"{error.filename}: " if error.filename else ""
        advice = f": {_ADVICE[error.errno]}" if error.errno in _ADVICE else ""
        print(f"error: {where}{error.strerror or error}{advice}", file=sys.stderr)
        sys.exit(2)
