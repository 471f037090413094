"""Arguments that several commands take."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Config = Annotated[Path, typer.Argument(help="YAML file of the run")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="settings to replace")]
Processes = Annotated[int, typer.Option("--processes", "-n", min=1, help="processes: one per GPU")]
