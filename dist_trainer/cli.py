"""ltx-train: train, look at a config, export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from shards.errors import InputError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Train LTX-Video and export what was trained."
)

_Config = Annotated[Path, typer.Argument(help="YAML file of the run")]
_Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="settings to replace")]


@app.command("run")
def run_command(config: _Config, overrides: _Overrides = None) -> None:
    """Train in this process (a launcher starts one per GPU)."""
    from dist_trainer.train import entry

    entry([str(config), *(overrides or [])])


@app.command("config")
def config_command(config: _Config, overrides: _Overrides = None) -> None:
    """Check a config and print it in full, with every default."""
    from dist_trainer.config import dump, load, notices

    resolved = load(config, overrides or [])
    print(dump(resolved), end="")
    for notice in notices(resolved):
        print(f"# note: {notice}")


@app.command("export")
def export_command(
    run: Annotated[Path, typer.Argument(help="output folder of a run")],
    step: Annotated[int | None, typer.Option(help="checkpoint to export; the newest by default")] = None,
    dtype: Annotated[str | None, typer.Option(help="bf16 or fp32, of a full model's weights")] = None,
) -> None:
    """Write a checkpoint's weights as files that diffusers opens."""
    import torch

    from dist_trainer.exporting.export import export

    dtypes = {"bf16": torch.bfloat16, "fp32": torch.float32}
    if dtype is not None and dtype not in dtypes:
        raise InputError(f"--dtype {dtype}: use bf16 or fp32")
    print(export(run, step, dtypes[dtype] if dtype else None))


def main() -> None:
    """Console entry point: bad input ends with one line and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
