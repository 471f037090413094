"""Commands on datasets that are there: index, stats, plan."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from shards.cli.printing import print_summary
from shards.counted import counted
from shards.errors import InputError, ShardError
from shards.geometry import Scale

if TYPE_CHECKING:
    from shards.dataset.info import DatasetInfo
    from shards.dataset.manifest import Manifest

DatasetRoot = Annotated[str, typer.Argument(metavar="DIR", help="Folder or URL of the dataset.")]


@contextmanager
def advice_on_damage(root: str) -> Iterator[None]:
    """Say what to do about a damaged shard of the dataset ``root``, as an InputError."""
    try:
        yield
    except ShardError as error:
        raise InputError(
            f"{error}; put a whole copy of the shard in its place, or `ltx-shards doctor {root} --repair` writes a "
            "manifest of the samples that are whole, which needs no index after it"
        ) from error


def listed(others: Mapping[str, int]) -> str:
    """What shards hold beside samples, as ``Members.others`` counts it."""
    return ", ".join(f"{count} {name or 'without an extension'}" for name, count in others.items())


def index(
    root: DatasetRoot,
    append: Annotated[
        bool,
        typer.Option("--append", help="Scan only shards that the manifest does not know yet, or grown ones."),
    ] = False,
    like: Annotated[
        str | None,
        typer.Option(help="Dataset of the same model whose dataset.json to take, for foreign shards."),
    ] = None,
    scale: Annotated[
        str | None,
        typer.Option(
            help="Or the VAE's compression, frames x side, as 8x32: dataset.json is made from it, or corrected."
        ),
    ] = None,
    fps: Annotated[float | None, typer.Option(help="Rate of samples whose json has no fps.")] = None,
    threads: Annotated[int | None, typer.Option(help="Shards scanned at once; default: CPUs.")] = None,
) -> None:
    """Build manifest.parquet from the shards alone, checking every sample on the way."""

    from shards.dataset.index import index as index_dataset
    from shards.prepare.work.progress import progress_bar

    if like and scale:
        raise InputError("give --like or --scale, not both")
    if fps is not None and not 0 < fps < math.inf:
        raise InputError(f"--fps {fps}: it must be a positive number")
    if threads is not None and threads < 1:
        raise InputError(f"--threads {threads}: it must be at least 1")
    others: Counter[str] = Counter()
    with progress_bar() as progress:
        task = progress.add_task("Scanning shards", total=None)
        with advice_on_damage(root):
            manifest = index_dataset(
                root,
                _description_of(like) if like else None,
                scale=_scale(scale) if scale else None,
                fps=fps,
                append=append,
                threads=threads,
                others=others,
                on_shard=lambda _, total: progress.update(task, total=total, advance=1),
            )
    typer.echo(f"{root}: {_size(manifest)}, fingerprint {manifest.fingerprint}")
    if others:
        typer.echo(
            f"passed over, as a sample is a json and a safetensors: {listed(dict(others.most_common()))}"
        )


def merge(
    roots: Annotated[
        list[str], typer.Argument(metavar="DIR...", help="Folders or URLs of datasets of one model.")
    ],
    out: Annotated[str, typer.Option(help="Folder or URL to join them in; samples already there stay.")],
    copy: Annotated[bool, typer.Option("--copy", help="Copy shards where hard links would do.")] = False,
) -> None:
    """Join datasets into one: no sample is encoded or written again, shards are linked or copied."""

    from shards.dataset.merge import merge as merge_datasets
    from shards.prepare.work.progress import progress_bar

    with progress_bar() as progress:
        task = progress.add_task("Taking shards", total=None)
        report = merge_datasets(
            roots,
            out,
            copy=copy,
            on_shard=lambda total: progress.update(task, total=total, advance=1),
        )
    for root in report.there:
        typer.echo(f"{root}: its samples are in {out} already")
    typer.echo(
        f"{out}: {_size(report.manifest)}, {report.added} of them new "
        f"({report.linked} as hard links), fingerprint {report.manifest.fingerprint}"
    )


def stats(root: DatasetRoot) -> None:
    """Show what a dataset holds: totals, clip sizes, lengths."""

    from shards.dataset.opened import open_dataset
    from shards.dataset.stats import render, summarize

    print_summary(render(summarize(open_dataset(root))))


def plan(
    root: DatasetRoot,
    ranks: Annotated[str, typer.Option(help="Numbers of GPUs to plan for, as 8,64,512.")],
    samples_per_step: Annotated[
        int | None,
        typer.Option(help="Samples of an optimizer step, all GPUs; give this or --tokens-per-step."),
    ] = None,
    tokens_per_step: Annotated[
        int | None, typer.Option(help="Tokens of an optimizer step; give this or --samples-per-step.")
    ] = None,
    mix: Annotated[str, typer.Option(help="random or similar.")] = "random",
    cap: Annotated[
        int, typer.Option("--cap", "--max-tokens-per-pack", help="Most tokens in one GPU's micro-batch.")
    ] = 65536,
    seed: Annotated[int, typer.Option(help="Seed of the run.")] = 42,
    quadratic: Annotated[float, typer.Option(help="Cost of a sample is L + quadratic * L^2 tokens.")] = 6e-5,
    steps: Annotated[int, typer.Option(help="Most steps to lay out.")] = 100,
) -> None:
    """Show how well GPUs would be used by a dataset, before anything runs."""
    from shards.dataset.opened import open_dataset
    from shards.efficiency import advice, render, report
    from shards.pack import check_cap
    from shards.plan import Batching

    counts = _ranks(ranks)
    if (samples_per_step is None) == (tokens_per_step is None):
        raise InputError("give exactly one of --samples-per-step and --tokens-per-step")
    if mix not in ("random", "similar"):
        raise InputError(f"--mix {mix!r}: random or similar")
    batching = Batching(samples_per_step, tokens_per_step, "random" if mix == "random" else "similar")
    manifest = open_dataset(root).manifest
    tokens = manifest.tokens()
    check_cap(manifest.keys.tolist(), tokens, cap, "--cap")
    rows = report(tokens, manifest.ids, batching, counts, cap, quadratic, seed=seed, max_steps=steps)
    print_summary(render(rows))
    remark = advice(rows)
    if remark:
        typer.echo(remark)


def _size(manifest: Manifest) -> str:
    return f"{counted(len(manifest), 'sample')} in {counted(len(manifest.shards), 'shard')}"


def _description_of(like: str) -> DatasetInfo:
    from shards.dataset.info import INFO_NAME, read_info
    from shards.storage import open_storage

    if open_storage(like).stat(INFO_NAME) is None:
        raise InputError(
            f"--like {like}: no {INFO_NAME} is there: give the folder of a dataset of the same model"
        )
    return read_info(like)


def _ranks(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--ranks {text!r}: numbers of GPUs with commas between them, as 8,64,512")
    return [int(part) for part in parts]


def _scale(text: str) -> Scale:
    match = re.fullmatch(r"([1-9][0-9]*)x([1-9][0-9]*)", text)
    if not match:
        raise InputError(f"--scale {text!r}: frames and pixels a side of one latent cell, as 8x32")
    return Scale(int(match[1]), int(match[2]))
