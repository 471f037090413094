"""Long videos to one clip per scene, a table of them, and pictures to look through them."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shards.atomic import place
from shards.errors import InputError
from shards.prepare.failures import read_failures, reason_for, write_failures
from shards.prepare.media.clip_error import ClipError
from shards.prepare.media.film import Film, reading, writing
from shards.prepare.split.footage import EXTENSIONS, Video, find_videos
from shards.prepare.split.record import (
    Record,
    read_record,
    read_records,
    real_path,
    size_of,
    write_record,
)
from shards.prepare.split.scenes import Found, Scene, SceneOptions, check, find_scenes
from shards.prepare.split.sheet import PER_PAGE, shown_frames, thumbnail, write_sheet
from shards.prepare.tables.rows import TABLE_SUFFIXES, read_rows, write_rows
from shards.prepare.work.job import Job
from shards.prepare.work.trial import attempt, mark_deadly, marked_deadly
from shards.prepare.work.workers import ALONE, Worker
from shards.storage import Folder

if TYPE_CHECKING:
    import av
    from PIL import Image

PREVIEWS = "previews"
_STATE = ".split"
_DEADLY = f"{_STATE}/deadly"
_PATIENCE_S = 86400.0  # for a whole video, where a process died at it

OnFrame = Callable[
    [str, int, int], None
]  # what is done to which video, frames gone by, frames in it (0: not known)


@dataclass(frozen=True)
class SplitReport:
    """What `split` did, with what earlier runs of the same job did."""

    table: Path
    videos: int = 0
    scenes: int = 0
    seconds: float = 0.0
    left_out: dict[str, int] = field(default_factory=dict)  # scenes, by reason
    failures: list[tuple[str, str]] = field(default_factory=list)  # videos without a clip, and why
    damaged: list[tuple[str, str]] = field(default_factory=list)  # videos used up to where they break off


@dataclass(frozen=True)
class Request:
    """What to split, and how; made by `check_request`."""

    videos: list[Video]
    out: Path
    options: SceneOptions
    crf: int
    table: str


def check_request(
    inputs: Sequence[Path],
    out: Path,
    options: SceneOptions,
    crf: int = 16,
    table: str = "dataset.jsonl",
    recursive: bool = False,
    extensions: Sequence[str] = EXTENSIONS,
) -> Request:
    """See whether `split` can begin. Raises `InputError` for what makes no sense, and inputs without a video."""
    check(options)
    if not 0 <= crf <= 51:
        raise InputError(f"--crf {crf} must be between 0 (lossless) and 51")
    if Path(table).suffix.lower() not in TABLE_SUFFIXES or Path(table).name != table:
        raise InputError(f"--table {table!r}: a file name ending in .csv, .json or .jsonl")
    if out.exists() and not out.is_dir():
        raise InputError(f"--out {out} is not a folder")
    if out.resolve() in [given.resolve() for given in inputs]:
        raise InputError(
            f"--out {out} is the folder of the videos, and clips would lie among them: give another"
        )
    videos = find_videos(inputs, recursive, out, read_records(Folder(out)), extensions)
    return Request(videos, out, options, crf, table)


def split(
    request: Request,
    worker: Worker = ALONE,
    on_videos: Callable[[int, int], None] = lambda done, total: None,
    on_frame: OnFrame = lambda what, done, total: None,
) -> SplitReport:
    """Write a clip per scene of each video as `out/VIDEO/VIDEO-scene-0001.mp4`, and a table beside them.

    Clips have the video's rate and size, upright, without sound. `out/previews/VIDEO.jpg` shows them. A table
    that is there keeps its rows, but for those of clips that were removed. A video that was split before, into
    the same folder, is not split again. Any number of workers may do this together, see `Job`.

    A video that cannot be read is in the report and in `out/failures.jsonl`, and the next call tries it again. That
    list keeps what calls with other videos put there.
    Raises InputError for other options than those of the clips that are there, for a video that changed, and where
    no video could be read.
    """
    videos, out, options, crf, table = (getattr(request, entry.name) for entry in fields(request))
    storage = Folder(out)
    # The clips of a folder were all cut in one way; what was cut grows from run to run.
    Job(storage, _STATE, 0, asdict(options) | {"crf": crf})
    job = Job(storage, f"{_STATE}/{_digest(videos)}", len(videos), {})
    job.reopen(lambda unit, result: "failure" in result, worker)
    scratch = out / job.folder / "scratch"

    def finish(results: list[dict[str, Any]]) -> dict[str, Any]:
        _update_table(storage, table)
        summary = _summary(results)
        _list_failures(storage, videos, summary["failures"])
        shutil.rmtree(scratch, ignore_errors=True)  # what killed workers left
        return summary

    died = marked_deadly(storage, _DEADLY, [video.name for video in videos])

    def do(unit: int, careful: bool = False) -> dict[str, Any]:
        video = videos[unit]
        if careful or video.name in died:
            alone = partial(_split_one, storage, options, crf, scratch, _tell_nobody)
            made, fatal = attempt(alone, [video], _PATIENCE_S)
            for how in fatal.values():
                mark_deadly(storage, _DEADLY, [video.name])
                return {"source": _source(video), "failure": how}
            if made:
                return made[0]
        return _split_one(storage, options, crf, scratch, on_frame, video)

    def describe(unit: int) -> str:
        return str(videos[unit].path)

    result = job.run(worker, do, finish, on_videos, describe, careful=partial(do, careful=True))
    if not (out / table).exists():
        _update_table(storage, table)
    pairs = {name: [tuple(pair) for pair in result[name]] for name in ("failures", "damaged")}
    report = SplitReport(out / table, **result | pairs)
    if len(report.failures) == report.videos:
        source, reason = report.failures[0]
        raise InputError(
            f"{out}: none of {report.videos} videos could be split; the first, {source}: {reason}"
        )
    return report


def _digest(videos: Sequence[Video]) -> str:
    """16 hex digits of the names and sizes of all videos."""
    listed = "\n".join(f"{os.fsencode(video.name)!r} {size_of(video.path)}" for video in videos)
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def _list_failures(storage: Folder, videos: Sequence[Video], failures: Sequence[tuple[str, str]]) -> None:
    """Write the list of failures: of these videos, after those of others that are in it."""
    mine = {real_path(video.path) for video in videos}
    others = [entry for entry in read_failures(storage) if real_path(Path(entry.source)) not in mine]
    write_failures(storage, [*others, *failures])


def _tell_nobody(what: str, done: int, total: int) -> None:
    """Of frames that go by in another process."""


def _source(video: Video) -> str:
    return os.fsencode(video.path).decode(errors="backslashreplace")


def _split_one(
    storage: Folder, options: SceneOptions, crf: int, scratch: Path, on_frame: OnFrame, video: Video
) -> dict[str, Any]:
    """Split a video, unless that was done; a record of it is written last. Its failure is the result too."""
    source = _source(video)
    if source != str(video.path):
        return {"source": source, "failure": "its name is not UTF-8 text: rename it"}
    size = size_of(video.path)
    if record := read_record(storage, video.name):
        if record["size"] != size:
            raise InputError(
                f"{storage.name}/{video.name} holds the scenes of {record['source']} ({record['size']} bytes), "
                f"and {source} has {size} bytes: give another --out, or rename the video"
            )
        return dict(record)
    scratch.mkdir(exist_ok=True)
    try:
        found = find_scenes(video.path, options, partial(on_frame, f"{video.path.name}: scenes"))
        with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as temporary:
            clips = _write_clips(storage, video, found, crf, Path(temporary), on_frame)
    except FileNotFoundError:
        # Another worker did the same meanwhile, and cleaned up at the end of the job.
        if (record := read_record(storage, video.name)) is None:
            raise
        return dict(record)
    except (OSError, InputError):
        raise  # of the folder that is written to
    except Exception as error:
        return {"source": source, "failure": reason_for(error)}
    record = Record(
        source=source,
        path=real_path(video.path),
        size=size,
        clips=clips,
        left_out=found.left_out,
        damage=found.damage,
    )
    write_record(storage, video.name, record)
    return dict(record)


def _write_clips(
    storage: Folder, video: Video, found: Found, crf: int, temporary: Path, on_frame: OnFrame
) -> list[dict[str, Any]]:
    """Write the clips and sheets of a video; a row for each clip, its path relative to the output folder."""
    rows, page = [], []
    with reading(video.path) as film:
        numbered = enumerate(film.frames)
        for number, scene in enumerate(found.scenes, start=1):
            thumbs = _write_clip(film, video, numbered, scene, crf, temporary / "clip.mp4", on_frame)
            path = f"{video.name}/{Path(video.name).name}-scene-{number:04d}.mp4"
            place(temporary / "clip.mp4", storage.root / path)
            rows.append({"media_path": path, "start": round(scene.start_s, 6), "end": round(scene.end_s, 6)})
            page.append((scene, thumbs))
            if len(page) == PER_PAGE or number == len(found.scenes):
                _write_page(storage, video, number - len(page) + 1, page, temporary)
                page = []
    return rows


def _write_clip(
    film: Film,
    video: Video,
    numbered: Iterator[tuple[int, av.VideoFrame]],
    scene: Scene,
    crf: int,
    file: Path,
    on_frame: OnFrame,
) -> list[Image.Image]:
    """Write the frames of a scene, passing over those before it; gives the thumbnails for the sheet."""
    thumbs: list[Image.Image] = []
    shown = shown_frames(scene)
    with writing(file, scene.rate(film.rate), crf, film.pixel) as append:
        for number, frame in numbered:
            on_frame(f"{video.path.name}: clips", number + 1, film.length)
            if number < scene.first:
                continue
            thumbs += [thumbnail(film.picture(frame))] * shown.count(number)
            append(frame)
            if number == scene.end - 1:
                return thumbs
    raise ClipError(video.path, f"it ended before frame {scene.end} when read again")


def _write_page(
    storage: Folder, video: Video, first: int, page: Sequence[tuple[Scene, Any]], temporary: Path
) -> None:
    number = (first - 1) // PER_PAGE + 1
    write_sheet(temporary / "sheet.jpg", f"{video.path.name}   page {number}", first, page)
    ending = "" if number == 1 else f"-{number}"
    place(temporary / "sheet.jpg", storage.root / PREVIEWS / f"{video.name}{ending}.jpg")


def _update_table(storage: Folder, name: str) -> None:
    """Add the clips of all videos that are not in the table, and take those out that are no more."""
    path = storage.root / name
    rows = read_rows(path) if path.exists() else []
    clips: dict[str, dict[str, Any]] = {}
    for record in read_records(storage).values():
        # From the table's folder, as all paths in it.
        source = Path(os.path.relpath(record["path"], storage.root.resolve())).as_posix()
        for clip in record["clips"]:
            place = {"start": clip["start"], "end": clip["end"]}
            row = {"media_path": clip["media_path"], "caption": "", "source": source, **place}
            clips[row["media_path"]] = row
    gone = {media for media in clips if not (storage.root / media).exists()}
    listed = {row.get("media_path") for row in rows}
    rows = [row for row in rows if row.get("media_path") not in gone]
    rows += [row for media, row in clips.items() if media not in listed | gone]
    if rows:
        write_rows(path, rows)


def _summary(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Fields of the report, from the records of all videos."""
    done = [record for record in results if "failure" not in record]
    clips = [clip for record in done for clip in record["clips"]]
    left_out: Counter[str] = Counter()
    for record in done:
        left_out.update(record["left_out"])
    return {
        "videos": len(results),
        "scenes": len(clips),
        "seconds": sum(clip["end"] - clip["start"] for clip in clips),
        "left_out": dict(left_out),
        "failures": [(r["source"], r["failure"]) for r in results if "failure" in r],
        "damaged": [(r["source"], r["damage"]) for r in done if r["damage"]],
    }
