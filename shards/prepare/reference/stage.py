"""Reference clips beside the originals, made by a filter, and their column in the table."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from shards.atomic import place
from shards.errors import InputError
from shards.prepare.failures import FAILURES_NAME, reason_for, write_failures
from shards.prepare.media.film import reading, writing
from shards.prepare.media.picture import IMAGE_SUFFIXES
from shards.prepare.media.video import read_clip, write_clip
from shards.prepare.reference.filters import Filter
from shards.prepare.tables.rows import read_rows, split_cell, table_bytes, write_rows
from shards.prepare.tables.table import REFERENCE_COLUMN, sample_keys
from shards.prepare.work.job import Job
from shards.prepare.work.trial import attempt, mark_deadly, marked_deadly
from shards.prepare.work.workers import ALONE, Worker
from shards.storage import Folder

REFERENCES = "references"
ROWS_PER_UNIT = 16
_STATE = ".reference"
_DEADLY = f"{_STATE}/deadly"
_PATIENCE_S = 3600.0  # for the reference of a clip, where a process died at one
_AT_ONCE = 16  # frames that a built-in filter gets


@dataclass(frozen=True)
class ReferenceOptions:
    """Where references go. `out` is a table beside the one read, None for that one itself; one that is there keeps
    its rows and columns.

    A column that names other references already: `append` adds to them, `replace` takes their place.
    """

    out: Path | None = None
    column: str = REFERENCE_COLUMN
    media_column: str = "media_path"
    append: bool = False
    replace: bool = False
    overwrite: bool = False  # make again what is there
    crf: int = 12


@dataclass(frozen=True)
class Request:
    """What to make: each clip once, as the table has it, and its reference, both relative to the table."""

    table: Path
    filter: Filter
    options: ReferenceOptions
    references: dict[str, str]


@dataclass(frozen=True)
class ReferenceReport:
    """What there is after `make_references`: so many references in `folder`, and clips without one, with reasons."""

    table: Path
    folder: Path
    references: int
    failures: list[tuple[str, str]]


def check_request(table: Path, filter: Filter, options: ReferenceOptions) -> Request:
    """See whether `make_references` can begin. Raises `InputError` naming what is wrong with table or options."""
    if options.append and options.replace:
        raise InputError("--append keeps the references of a row and --replace does not: give one of them")
    if not 0 <= options.crf <= 51:
        raise InputError(f"--crf {options.crf} must be between 0 (lossless) and 51")
    if options.out is not None and options.out.resolve().parent != table.resolve().parent:
        raise InputError(
            f"--out {options.out}: must be in {table.parent}, since paths are relative to the table"
        )
    media = [_media(table, number, row, options) for number, row in enumerate(read_rows(table), start=1)]
    if not media:
        raise InputError(f"{table}: no rows in it")
    references = _names(list(dict.fromkeys(media)), f"{REFERENCES}/{_label(filter, options)}")
    for number, (source, row) in enumerate(_rows(table, options), start=1):
        mine = references[str(row[options.media_column]).strip()]
        others = [path for path in _references(source, row, options.column) if path != mine]
        if others and not (options.append or options.replace):
            raise InputError(
                f"{source}: row {number}: column {options.column!r} names {others[0]!r} already: --append adds a "
                "reference, --replace takes its place, --column NAME makes another column"
            )
    return Request(table, filter, options, references)


def make_references(
    request: Request,
    worker: Worker = ALONE,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> ReferenceReport:
    """Make the reference of each clip, with as many frames at the same rate, and write the table.

    They are `references/LABEL/<path of the clip>` beside the table: .mp4, and .png for a picture. What is there
    is complete, and is left as it is, unless `overwrite`: then the first worker has all made again, once a call,
    and one that was killed is gone on with. The table is written when all are made, with the columns and captions
    it then has. Any number of workers may do this together, see `Job`.

    A clip that cannot be read, or for which a user's function raises, gets no reference, is in the report and in
    `references/LABEL/failures.jsonl`, and is tried again by the next call. Raises InputError for a filter's result
    that is no frames, and where no reference could be made.
    """
    table, options = request.table, request.options
    storage = Folder(table.parent)
    media = list(request.references)
    units = [media[start : start + ROWS_PER_UNIT] for start in range(0, len(media), ROWS_PER_UNIT)]
    job = _job(storage, request, len(units))

    def is_stale(unit: int, result: Mapping[str, Any]) -> bool:
        return bool(result) or not all(_is_there(request, name) for name in units[unit])

    # One worker alone, or each task of an array that starts after the end would make all of it again.
    anew = options.overwrite and job.result() is not None
    job.reopen((lambda unit, result: True) if anew else is_stale, worker)
    scratch = storage.root / job.folder / "scratch"
    died = marked_deadly(storage, _DEADLY, media)

    def do(unit: int, careful: bool = False) -> dict[str, Any]:
        scratch.mkdir(exist_ok=True)
        return _make(request, scratch, units[unit], units[unit] if careful else died)

    def finish(results: list[dict[str, Any]]) -> dict[str, Any]:
        failures: dict[str, str] = {name: reason for result in results for name, reason in result.items()}
        _conclude(storage, request, failures)
        shutil.rmtree(scratch, ignore_errors=True)  # what killed workers left
        return failures

    def describe(unit: int) -> str:
        return f"{units[unit][0]} and those after it"

    failures = job.run(worker, do, finish, on_progress, describe, careful=partial(do, careful=True))
    if worker.index == 0:
        _conclude(storage, request, failures)  # the table may have been put back since the job was done
    if len(failures) == len(media):
        name, reason = next(iter(failures.items()))
        raise InputError(f"{table}: none of {len(media)} clips got a reference; the first, {name}: {reason}")
    return ReferenceReport(
        options.out or table,
        table.parent / REFERENCES / _label(request.filter, options),
        len(media) - len(failures),
        list(failures.items()),
    )


def _label(filter: Filter, options: ReferenceOptions) -> str:
    usual = ReferenceOptions.crf
    return filter.label if options.crf == usual else f"{filter.label}-crf{options.crf}"


def _job(storage: Folder, request: Request, units: int) -> Job:
    table, options = request.table, request.options
    identity = {
        "table": table.name,
        "out": (options.out or table).name,
        "column": options.column,
        "append": options.append,
        "replace": options.replace,
        "overwrite": options.overwrite,
        "references": hashlib.sha256(repr(request.references).encode()).hexdigest()[:16],
    }
    digest = hashlib.sha256(repr(identity).encode()).hexdigest()[:16]
    return Job(storage, f"{_STATE}/{digest}", units, identity)


def _is_there(request: Request, name: str) -> bool:
    return (request.table.parent / request.references[name]).is_file()


def _media(table: Path, number: int, row: Mapping[str, Any], options: ReferenceOptions) -> str:
    if options.media_column not in row:
        there = ", ".join(map(repr, row))
        raise InputError(f"{table}: row {number}: no column {options.media_column!r} (there are: {there})")
    value = row[options.media_column]
    if not isinstance(value, str) or not value.strip():
        raise InputError(
            f"{table}: row {number}: column {options.media_column!r} holds {value!r}, not a path"
        )
    return value.strip()


def _rows(table: Path, options: ReferenceOptions) -> list[tuple[Path, dict[str, Any]]]:
    """The rows that get references, each with the table it is from: `out`'s own where it is there, then new ones.

    Raises InputError where `out` lists other clips than the table.
    """
    rows, out, column = read_rows(table), options.out, options.media_column
    if out is None or out.resolve() == table.resolve() or not out.is_file():
        return [(table, row) for row in rows]
    there = read_rows(out)
    listed, known = ({str(row.get(column)).strip() for row in some} for some in (rows, there))
    if foreign := sorted(known - listed):
        raise InputError(
            f"--out {out}: is there and lists {foreign[0]!r}, which {table} does not: give another name, or remove it"
        )
    new = [(table, row) for row in rows if str(row.get(column)).strip() not in known]
    return [*((out, row) for row in there), *new]


def _names(media: Sequence[str], folder: str) -> dict[str, str]:
    """For each clip the path of its reference: its own below `folder`, as far as that is inside the table's."""
    keys = dict(zip(media, sample_keys(list(media)), strict=True))
    names = {name: _plain_name(name) for name in media}
    shared = Counter(names.values())
    for name, path in names.items():
        if path is None or shared[path] > 1:
            names[name] = keys[name] + _suffix(name)
    return {name: f"{folder}/{path}" for name, path in names.items()}


def _plain_name(media: str) -> str | None:
    path = PurePosixPath(os.path.normpath(media))
    # `;` stands between the paths of a cell in CSV.
    if path.is_absolute() or ".." in path.parts or ";" in media:
        return None
    return path.with_suffix(_suffix(media)).as_posix()


def _suffix(media: str) -> str:
    return ".png" if Path(media).suffix.lower() in IMAGE_SUFFIXES else ".mp4"


def _make(request: Request, scratch: Path, names: Sequence[str], suspects: Collection[str]) -> dict[str, str]:
    """Make references, the suspects' in a process of its own; why others could not be made."""
    with tempfile.TemporaryDirectory(dir=scratch, ignore_cleanup_errors=True) as temporary:
        make = partial(_make_one, request, Path(temporary))
        tried = [name for name in names if name in suspects]
        made, fatal = attempt(make, tried, _PATIENCE_S)
        reasons = {tried[number]: reason for number, reason in {**made, **fatal}.items()}
        mark_deadly(Folder(request.table.parent), _DEADLY, (tried[number] for number in fatal))
        reasons |= {name: make(name) for name in names if name not in reasons}
    return {name: reason for name, reason in reasons.items() if reason}


def _make_one(request: Request, temporary: Path, name: str) -> str | None:
    """Make a reference, unless it is there; why it could not be made."""
    folder = request.table.parent
    source, target = folder / name, folder / request.references[name]
    if target.exists() and not request.options.overwrite:
        return None
    file = temporary / f"reference{target.suffix}"
    try:
        if target.suffix == ".png":
            write_clip(file, request.filter.apply(read_clip(source, 1)), 1.0)
        else:
            _filter_video(source, file, request)
        place(file, target)
    except FileNotFoundError:
        # Another worker did the same meanwhile, and cleaned up at the end of the job.
        if not target.exists():
            raise
    except OSError:
        raise  # of the folder that is written to
    except InputError as error:
        raise InputError(f"{error} ({name})") from error
    except Exception as error:
        return reason_for(error)
    return None


def _filter_video(source: Path, file: Path, request: Request) -> None:
    with reading(source) as film, writing(file, film.rate, request.options.crf) as append:
        frames = map(film.picture, film.frames)
        for chunk in _chunks(frames, None if request.filter.whole else _AT_ONCE):
            for frame in request.filter.apply(chunk):
                append(frame)


def _chunks(frames: Iterator[np.ndarray], size: int | None) -> Iterator[np.ndarray]:
    while some := list(islice(frames, size)):
        yield np.stack(some)


def _references(table: Path, row: Mapping[str, Any], column: str) -> list[str]:
    """What a row names in the column, which need not be there."""
    paths = split_cell(table, row.get(column))
    if paths is None:
        raise InputError(f"{table}: column {column!r} holds {row[column]!r}, expected text or a list of it")
    return [path for path in paths if path]


def _conclude(storage: Folder, request: Request, failures: Mapping[str, str]) -> None:
    """Write the table as it is now, with the column of references, and the list of clips without one."""
    table, options = request.table, request.options
    gone = [name for name in request.references if name not in failures and not _is_there(request, name)]
    if gone:
        raise InputError(
            f"{table.parent / request.references[gone[0]]} was made and is gone: run the same command again"
        )
    write_failures(storage, failures.items(), _failures_path(request))
    if len(failures) == len(request.references):
        return  # an error, which leaves the table as it is
    rows = []
    for source, row in _rows(table, options):
        rows.append(row)
        name = str(row.get(options.media_column)).strip()
        if name not in request.references:
            continue  # added while this was running
        mine = request.references[name]
        paths = _references(source, row, options.column) if options.append else []
        if name not in failures and mine not in paths:
            paths.append(mine)
        row[options.column] = None if not paths else paths[0] if len(paths) == 1 else paths
    out = options.out or table
    if not out.is_file() or out.read_bytes() != table_bytes(out, rows):
        write_rows(out, rows)


def _failures_path(request: Request) -> str:
    return f"{REFERENCES}/{_label(request.filter, request.options)}/{FAILURES_NAME}"
