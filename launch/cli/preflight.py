"""The command that tries the machines: preflight."""

from __future__ import annotations

import typer

from launch.cli.arguments import Config, Overrides, Processes
from launch.local import local

app = typer.Typer()


@app.command("preflight")
def preflight_command(
    config: Config,
    overrides: Overrides = None,
    processes: Processes = 1,
) -> None:
    """Try this machine for a run: devices, network, storage, code and data. It trains and records nothing.

    On several, inside a job: srun python -m dist_trainer.preflight CONFIG
    """
    raise typer.Exit(local(config, overrides or [], processes, "dist_trainer.preflight"))
