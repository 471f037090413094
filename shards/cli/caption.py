"""The command ``ltx-shards caption``."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.cli.printing import print_summary
from shards.errors import InputError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from shards.prepare.caption.captioner import Captioner
    from shards.prepare.caption.listing import Listing
    from shards.prepare.caption.options import CaptionOptions
    from shards.prepare.caption.stage import CaptionReport
    from shards.prepare.work.workers import Worker

_INSTRUCTION = "Shortly describe the content of this video in two sentences."
_EXTENSIONS = "mp4,avi,mov,mkv,webm,jpg,jpeg,png,webp"

Source = Annotated[
    Path,
    typer.Argument(metavar="INPUT", help="Folder of media, a media file, or a CSV, JSON or JSONL table."),
]
_out = typer.Option(
    "--out",
    "--output",
    "-o",
    help="Table to write; unset: INPUT if it is one, else dataset.jsonl in the folder.",
)
_model = typer.Option("--model", help="Hub id or folder of a chat model that sees; unset: Qwen2.5-VL-7B.")
_endpoint = typer.Option(help="URL of an OpenAI-compatible server that captions; its key: OPENAI_API_KEY.")
_endpoint_video = typer.Option(help="Send the server videos (video_url) instead of pictures.")
_concurrency = typer.Option(help="Requests to the server at once.")
_retries = typer.Option(help="Times that a request to the server is repeated.")
_timeout = typer.Option(help="Seconds to wait for the server's answer.")
_instruction = typer.Option("--instruction", "-i", help="What the model is asked to write.")
_fps = typer.Option("--fps", "-f", help="Frames per second of a video that the model sees.")
_max_frames = typer.Option(help="Most frames of a video that it sees; longer ones are thinned evenly.")
_pixels = typer.Option(help="Most pixels of a frame; larger ones are scaled down.")
_tokens = typer.Option(help="Longest answer, in tokens.")
_clean = typer.Option(help="Take off openings such as 'In the video,' or 'This clip shows'.")
_overwrite = typer.Option("--overwrite", "--override", help="Write captions anew where there are some.")
_extensions = typer.Option(
    "--extensions", "-e", help="Media files of a folder to take, by the ends of names."
)
_recursive = typer.Option("--recursive", "-r", help="Look into folders of the folder, too.")
_captions = typer.Option(help="Column of the captions.")
_media = typer.Option("--media-column", "--video-column", help="Column of the clips' paths.")
_device = typer.Option("--device", "-d", help="auto, cpu or cuda; each worker of a host takes the next GPU.")
_8bit = typer.Option("--use-8bit", help="Load the model in 8 bits: half its memory; needs bitsandbytes.")
_workers = typer.Option(
    help="Processes to start here; unset: one per GPU, or the rank that torchrun or srun gave."
)
_worker = typer.Option(help="Number of this one of --workers, from 0, where no launcher gives it.")


def caption(
    source: Source,
    out: Annotated[Path | None, _out] = None,
    model: Annotated[str | None, _model] = None,
    endpoint: Annotated[str | None, _endpoint] = None,
    endpoint_video: Annotated[bool, _endpoint_video] = False,
    concurrency: Annotated[int, _concurrency] = 16,
    retries: Annotated[int, _retries] = 5,
    request_timeout: Annotated[float, _timeout] = 300.0,
    instruction: Annotated[str, _instruction] = _INSTRUCTION,
    fps: Annotated[float, _fps] = 3.0,
    max_frames: Annotated[int, _max_frames] = 64,
    frame_pixels: Annotated[int, _pixels] = 64 * 28 * 28,
    max_new_tokens: Annotated[int, _tokens] = 200,
    clean_caption: Annotated[bool, _clean] = True,
    overwrite: Annotated[bool, _overwrite] = False,
    extensions: Annotated[str, _extensions] = _EXTENSIONS,
    recursive: Annotated[bool, _recursive] = False,
    caption_column: Annotated[str, _captions] = "caption",
    media_column: Annotated[str, _media] = "media_path",
    device: Annotated[str, _device] = "auto",
    use_8bit: Annotated[bool, _8bit] = False,
    workers: Annotated[int | None, _workers] = None,
    worker: Annotated[int | None, _worker] = None,
) -> None:
    """Caption videos and pictures with a vision-language model, into a table that encode takes.

    After a crash run the same command again, with any number of workers: captions that are made are kept,
    in a hidden folder beside the table. Clips that failed are tried again.
    """
    from shards.prepare.caption.endpoint import check_requests
    from shards.prepare.caption.listing import list_media
    from shards.prepare.caption.options import CaptionOptions
    from shards.prepare.work.workers import this_worker

    options = CaptionOptions(
        model=model,
        at_server=endpoint is not None,
        video_to_server=endpoint_video,
        instruction=instruction,
        fps=fps,
        max_frames=max_frames,
        frame_pixels=frame_pixels,
        max_new_tokens=max_new_tokens,
        clean=clean_caption,
        use_8bit=use_8bit,
    )
    check_requests(concurrency, retries, request_timeout)
    if endpoint is not None:
        _check_server(endpoint, device)
    server = partial(_open_server, options, endpoint or "", concurrency, retries, request_timeout)

    def opener(worker: Worker) -> Captioner:
        return server() if endpoint is not None else _open_local(options, device, worker)

    listing = partial(list_media, source, out, caption_column, media_column, extensions.split(","), recursive)
    me = this_worker(os.environ, worker, workers)
    _caption(listing, options, opener, overwrite, me, workers or _processes(endpoint, device))


def _caption(
    listing: Callable[[], Listing],
    options: CaptionOptions,
    opener: Callable[[Worker], Captioner],
    overwrite: bool,
    me: Worker | None,
    count: int,
) -> None:
    """Take part as worker `me`, or as the first of `count` that are started here. The first one reports."""
    from shards.prepare.caption.options import check
    from shards.prepare.caption.stage import caption as caption_listing
    from shards.prepare.work.workers import crew

    check(options)
    listing()  # what is wrong with it is said once, before others are started
    with nullcontext(me) if me else crew(sys.argv[1:], count) as worker:
        report = caption_listing(
            listing, options, partial(opener, worker), overwrite=overwrite, worker=worker
        )
    if worker.index == 0:
        print_summary(*render(report))


def render(report: CaptionReport) -> list[RenderableType]:
    """Rows captioned, kept and failed, how fast and by what, and the first failures with their reasons."""
    from rich.table import Table

    from shards.prepare.caption.stage import failures_path
    from shards.prepare.failures import failures_table

    table = Table(
        "captioned", "kept", "failed", "clips/s", "model", "sees", title=str(report.out), title_justify="left"
    )
    counts = report.captioned, report.kept, len(report.failures)
    table.add_row(*map(str, counts), f"{report.clips_per_s:.2f}", report.model or "-", report.sees or "-")
    if not report.failures:
        return [table]
    title = f"{len(report.failures)} left out, all listed in {failures_path(report.out)}"
    return [table, failures_table(report.failures, title)]


def _processes(endpoint: str | None, device: str) -> int:
    """One for each GPU of this machine that a model of our own may take."""
    if endpoint is not None or device not in ("auto", "cuda"):
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _check_server(url: str, device: str) -> None:
    from shards.prepare.caption.endpoint import base_url

    base_url(url)
    if device != "auto":
        raise InputError(f"--device {device} is for a model that is loaded here, not for one of --endpoint")


def _open_local(options: CaptionOptions, device: str, worker: Worker) -> Captioner:
    from shards.prepare.caption.captioner import DEFAULT_MODEL, LocalCaptioner
    from shards.prepare.encode.encoders import choose_device

    return LocalCaptioner(
        options.model or DEFAULT_MODEL,
        device=choose_device(device, worker.local),
        instruction=options.instruction,
        max_new_tokens=options.max_new_tokens,
        use_8bit=options.use_8bit,
    )


def _open_server(
    options: CaptionOptions, url: str, at_once: int, retries: int, timeout_s: float
) -> Captioner:
    from shards.prepare.caption.endpoint import EndpointCaptioner

    return EndpointCaptioner(
        url,
        options.model,
        instruction=options.instruction,
        max_new_tokens=options.max_new_tokens,
        video=options.video_to_server,
        at_once=at_once,
        retries=retries,
        timeout_s=timeout_s,
    )
