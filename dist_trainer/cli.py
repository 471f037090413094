"""ltx-train: train, look at a config, export, push."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from shards.errors import InputError

app = typer.Typer(
    add_completion=False, no_args_is_help=True, help="Train LTX-Video and export what was trained."
)

_Config = Annotated[Path, typer.Argument(help="YAML file of the run")]
_Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key=value]...", help="settings to replace")]
_Run = Annotated[Path, typer.Argument(help="output folder of a run")]
_Step = Annotated[int | None, typer.Option(help="checkpoint to export; the newest by default")]


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
    run: _Run,
    step: _Step = None,
    formats: Annotated[
        str | None,
        typer.Option(
            "--format", help="diffusers, comfyui or both; by default both for a LoRA, else diffusers"
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="bf16 or fp32; by default fp32 for a LoRA, else what the run computed in"),
    ] = None,
    merge: Annotated[
        bool, typer.Option("--merge", help="a LoRA in its base's weights, as a full model")
    ] = False,
    ema: Annotated[
        bool, typer.Option("--ema", help="the running mean of the weights, where the run keeps one")
    ] = False,
    pipeline: Annotated[
        str | None,
        typer.Option(
            help="link or copy: put the base's other parts beside a full model, for from_pretrained"
        ),
    ] = None,
) -> None:
    """Write a checkpoint's weights as files that diffusers and ComfyUI open."""
    _one_of("--format", formats, ("diffusers", "comfyui", "both"))
    _one_of("--dtype", dtype, ("bf16", "fp32"))
    _one_of("--pipeline", pipeline, ("link", "copy"))
    if pipeline and formats == "comfyui":
        raise InputError("--pipeline: is diffusers' layout; leave --format comfyui out, or use both")
    import torch

    from dist_trainer.exporting.export import Wanted, export

    kind = {None: None, "bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    with _one_line(run):
        written = export(run, step, Wanted(formats, kind, merge, pipeline, ema))  # type: ignore[arg-type]
    print(written)


@app.command("push")
def push_command(
    run: _Run,
    step: _Step = None,
    to: Annotated[
        str | None, typer.Option(help="repository, owner/name; the config's hub_model_id by default")
    ] = None,
) -> None:
    """Upload a run's export, with a model card, curves and sample videos, to the Hugging Face hub."""
    from dist_trainer.hub.push import push

    with _one_line(run):
        address = push(run, step, to)
    print(address)


@contextmanager
def _one_line(run: Path) -> Iterator[None]:
    """What the disk or a damaged file does within, as an InputError: a full disk is no fault of the program."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        raise InputError(f"{run}: {error}") from error


def _one_of(option: str, value: str | None, known: tuple[str, ...]) -> None:
    if value is not None and value not in known:
        raise InputError(f"{option} {value}: use {', '.join(known[:-1])} or {known[-1]}")


def main() -> None:
    """Console entry point: bad input ends with one line and exit code 2."""
    try:
        app()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
