"""The command that tries the machines: preflight."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.local import local

app = typer.Typer()


@app.command("preflight")
def preflight_command(
    config: Annotated[Path, typer.Argument(help="YAML file of the run")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="settings to replace")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", "-n", min=1, help="processes: one per GPU")] = 1,
) -> None:
    """Try this machine for a run: devices, network, storage, code and data. It trains and records nothing.

    On several, inside a job: srun python -m dist_trainer.preflight CONFIG
    """
    raise typer.Exit(local(config, overrides or [], processes, "dist_trainer.preflight"))
