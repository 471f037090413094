"""The command ``ltx-shards split``."""

from __future__ import annotations

import os
import sys
from contextlib import nullcontext
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shards.cli.printing import print_summary

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import TaskID

    from shards.prepare.split.stage import Request, SplitReport
    from shards.prepare.work.workers import Worker

_EXTENSIONS = "3gp,avi,flv,m2ts,m4v,mkv,mov,mp4,mpeg,mpg,mts,ogv,ts,webm,wmv"

_inputs = typer.Argument(metavar="VIDEO_OR_FOLDER...", help="Videos, and folders of videos.")
_out = typer.Option(help="Folder to write the clips, their table and the preview sheets into.")
_detector = typer.Option(help="content, adaptive, threshold (fades), histogram or hash.")
_threshold = typer.Option(
    help="When it is a cut; default: content 27, adaptive 3, threshold 12, histogram 0.2, hash 0.35."
)
_luma = typer.Option("--luma-only", help="Compare brightness only (content, adaptive).")
_window = typer.Option(help="Frames before and after that are averaged (adaptive; default 2).")
_fade = typer.Option(help="Where in the black to cut, from -1 to 1 (threshold; default 0, the middle).")
_minimum = typer.Option(help="Cuts that follow each other closer than this many frames make no scene.")
_shorter = typer.Option(
    help="Leave out scenes shorter than this: frames as 17, seconds as 2.5s, or HH:MM:SS."
)
_most = typer.Option(help="Keep this many scenes of each video, the first ones.")
_start = typer.Option(help="Leave out this much at the start of each video; as --filter-shorter-than.")
_end = typer.Option(help="Leave out this much at the end of each video.")
_skip = typer.Option(help="Frames passed over between two that are compared: faster, less exact.")
_downscale = typer.Option(help="Compare frames this many times smaller; default: to a width of 256.")
_crf = typer.Option(help="Quality of the clips: 0 is lossless, 16 hardly seen, larger is smaller.")
_table = typer.Option(help="Name of the table: .jsonl, .json or .csv.")
_extensions = typer.Option("--extensions", "-e", help="Videos of a folder to take, by the ends of names.")
_recursive = typer.Option("--recursive", "-r", help="Look into folders below the given ones too.")
_workers = typer.Option(help="Processes on this machine, each at a video of its own.")
_worker = typer.Option(help="Which of the --workers this process is, from 0, where no launcher says so.")


def split(
    inputs: Annotated[list[Path], _inputs],
    out: Annotated[Path, _out],
    detector: Annotated[str, _detector] = "content",
    threshold: Annotated[float | None, _threshold] = None,
    luma_only: Annotated[bool, _luma] = False,
    adaptive_window: Annotated[int | None, _window] = None,
    fade_bias: Annotated[float | None, _fade] = None,
    min_scene_length: Annotated[int | None, _minimum] = None,
    filter_shorter_than: Annotated[str, _shorter] = "0",
    max_scenes: Annotated[int | None, _most] = None,
    skip_start: Annotated[str, _start] = "0",
    skip_end: Annotated[str, _end] = "0",
    frame_skip: Annotated[int, _skip] = 0,
    downscale: Annotated[int | None, _downscale] = None,
    crf: Annotated[int, _crf] = 16,
    table: Annotated[str, _table] = "dataset.jsonl",
    extensions: Annotated[str, _extensions] = _EXTENSIONS,
    recursive: Annotated[bool, _recursive] = False,
    workers: Annotated[int | None, _workers] = None,
    worker: Annotated[int | None, _worker] = None,
) -> None:
    """Split long videos into one clip per scene, with a table of them and sheets of previews.

    After a crash run the same command again, with any number of workers: videos that are done are kept.
    """
    from shards.prepare.split.scenes import Length, SceneOptions
    from shards.prepare.split.stage import check_request
    from shards.prepare.work.workers import crew, this_worker

    options = SceneOptions(
        detector=detector,
        threshold=threshold,
        luma_only=luma_only,
        adaptive_window=adaptive_window,
        fade_bias=fade_bias,
        min_scene_length=min_scene_length,
        frame_skip=frame_skip,
        downscale=downscale,
        skip_start=Length.parse(skip_start, "--skip-start"),
        skip_end=Length.parse(skip_end, "--skip-end"),
        filter_shorter_than=Length.parse(filter_shorter_than, "--filter-shorter-than"),
        max_scenes=max_scenes,
    )
    me = this_worker(os.environ, worker, workers)
    request = check_request(inputs, out, options, crf, table, recursive, extensions.split(","))
    with nullcontext(me) if me else crew(sys.argv[1:], workers or 1) as place:
        report = _run(request, place)
    if place.index == 0:
        print_summary(*_render(report))


def _run(request: Request, place: Worker) -> SplitReport:
    """Split as one of several workers; the first shows how many videos are done, and how far its own is."""

    from shards.prepare.split.stage import split as split_videos
    from shards.prepare.work.progress import progress_bar

    with progress_bar(quiet=place.index > 0) as progress:
        bars: dict[str, TaskID] = {}

        def show(bar: str, what: str, done: int, total: int) -> None:
            # Not before there is something to count: until then there may be an error.
            if bar not in bars:
                bars[bar] = progress.add_task(what, total=None)
            progress.update(bars[bar], description=what, completed=done, total=total or None)

        def show_frame(what: str, done: int, total: int) -> None:
            if done % 25 == 0 or done == total:
                show("frames", what, done, total)

        show_videos = partial(show, "videos", "Splitting videos")
        report = split_videos(request, place, on_videos=show_videos, on_frame=show_frame)
        if "frames" in bars:
            progress.remove_task(bars["frames"])
    return report


def _render(report: SplitReport) -> list[RenderableType]:
    """The summary as a person reads it."""
    from rich.table import Table
    from rich.text import Text

    from shards.prepare.failures import FAILURES_NAME, failures_table
    from shards.prepare.split.stage import PREVIEWS

    counts = Table("videos", "scenes", "h:mm:ss")
    failed = len(report.failures)
    counts.add_row(
        str(report.videos - failed), str(report.scenes), str(timedelta(seconds=round(report.seconds)))
    )
    previews = Text(f"previews of the scenes: {report.table.parent / PREVIEWS}")
    parts: list[RenderableType] = [Text(str(report.table)), counts, previews]
    parts += [Text(f"{count} scenes left out: {reason}") for reason, count in report.left_out.items()]
    if failed:
        title = f"{failed} videos could not be read, all listed in {report.table.parent}/{FAILURES_NAME}"
        parts.append(failures_table(report.failures, title))
    if report.damaged:
        title = f"{len(report.damaged)} videos break off and were used up to there"
        parts.append(failures_table(report.damaged, title, column="video"))
    parts.append(Text(f"next: ltx-shards caption {report.table}"))
    return parts
