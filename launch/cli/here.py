"""Commands that run on this machine: local, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command("local")
def local_command(
    config: Annotated[Path, typer.Argument(help="YAML file of the run")],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="[key=value]...", help="settings to replace")
    ] = None,
    processes: Annotated[int, typer.Option("--processes", "-n", min=1, help="processes: one per GPU")] = 1,
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
    clips: Annotated[int, typer.Option(min=8, help="synthetic clips to render")] = 48,
) -> None:
    """Show the whole path on this machine's CPU, from clips to exported weights."""
    import subprocess

    from rich.console import Console

    from launch.demo import demo

    try:
        demo(folder.resolve(), clips, Console())
    except subprocess.CalledProcessError as error:
        raise typer.Exit(error.returncode) from None
