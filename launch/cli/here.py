"""Commands that run on this machine: local, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from launch.cli.arguments import Config, Overrides, Processes

app = typer.Typer()


@app.command("local")
def local_command(
    config: Config,
    overrides: Overrides = None,
    processes: Processes = 1,
) -> None:
    """Train on this machine."""
    from dist_trainer.config import load
    from dist_trainer.rundir import RunFolder
    from launch.local import train

    settings = load(config, overrides or [])
    raise typer.Exit(train(config, overrides or [], processes, RunFolder(settings.output_dir.absolute())))


@app.command("demo")
def demo_command(
    folder: Annotated[Path, typer.Option(help="emptied, then filled")] = Path("demo"),
    clips: Annotated[int, typer.Option(min=16, help="synthetic clips to draw for each of three runs")] = 64,
) -> None:
    """Show the whole path on this machine's CPU, from clips to exported weights."""
    import subprocess

    from rich.console import Console

    from launch.demo import demo

    try:
        demo(folder.resolve(), clips, Console())
    except subprocess.CalledProcessError as error:
        raise typer.Exit(error.returncode) from None
