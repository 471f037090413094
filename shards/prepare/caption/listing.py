"""What there is to caption: the rows of a table, or the media files of a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shards.errors import InputError
from shards.prepare.failures import Failure
from shards.prepare.media.picture import IMAGE_SUFFIXES
from shards.prepare.tables.rows import TABLE_SUFFIXES, numbered_rows, split_cell
from shards.prepare.tables.table import REFERENCE_COLUMN

EXTENSIONS = ("mp4", "avi", "mov", "mkv", "webm", "jpg", "jpeg", "png", "webp")
_TABLE_NAME = "dataset"
_HEAD = 1024  # characters
_MEDIA_SUFFIXES = IMAGE_SUFFIXES | {f".{extension}" for extension in EXTENSIONS}

Row = dict[str, Any]


@dataclass(frozen=True)
class Listing:
    """Rows as they will be in the table `out`, paths in them relative to its folder.

    `new` are the media that no table named so far: they come into the table with their caption only. `unusable`
    are files that no table can name.
    """

    out: Path
    rows: tuple[Row, ...]
    new: frozenset[str]
    caption: str  # the columns
    media: str
    unusable: tuple[Failure, ...] = ()

    def uncaptioned(self, overwrite: bool) -> list[str]:
        """Media without a caption, each once, in the order of rows; all of them where captions are redone."""
        return list(
            dict.fromkeys(row[self.media] for row in self.rows if overwrite or not self.has_caption(row))
        )

    def captioned(self, captions: Mapping[str, str], overwrite: bool) -> list[Row]:
        """The rows with captions (by media) filled in, over those that were there only if `overwrite`."""
        rows = []
        for row in self.rows:
            text = captions.get(row[self.media])
            if text is not None and (overwrite or not self.has_caption(row)):
                # The caption goes first in rows that have no place for it yet.
                row = {**({} if self.caption in row else {self.caption: text}), **row, self.caption: text}
            elif row[self.media] in self.new:
                continue
            rows.append(row)
        return rows

    def has_caption(self, row: Row) -> bool:
        """Whether a row has one that is not blank."""
        text = row.get(self.caption)
        return isinstance(text, str) and bool(text.strip())


def list_media(
    source: Path,
    out: Path | None = None,
    caption: str = "caption",
    media: str = "media_path",
    extensions: Iterable[str] = EXTENSIONS,
    recursive: bool = False,
) -> Listing:
    """What to caption in `source`: a table (.csv, .json, .jsonl), a folder of media, or one media file.

    `out` is the table to write, by default `source` itself if it is one, else `dataset.jsonl` in the folder
    (for a file: `NAME.dataset.jsonl` beside it), or a table that ends in `.json` there. Captions that `out` holds
    already count as there. Raises `InputError` for a source that is not there or holds nothing, and for unusable
    tables.
    """
    if not source.exists():
        raise InputError(
            f"{source}: no such file or folder. Give a folder of media, a media file or a table."
        )
    is_table = source.is_file() and source.suffix.lower() in TABLE_SUFFIXES
    out = out or _default_out(source, is_table)
    if out.suffix.lower() not in TABLE_SUFFIXES:
        raise InputError(f"--out {out}: unknown kind of dataset file. Name it .csv, .json or .jsonl.")
    before = _rows_of(out, out, caption, media) if out.is_file() else []
    if is_table:
        rows = before if source.absolute() == out.absolute() else _rows_of(source, out, caption, media)
        if not rows:
            raise InputError(f"{source}: no rows in it. Write one row per clip with the column {media!r}.")
        known = {row[media]: row.get(caption) for row in before}
        filled = [
            row if row.get(caption) else {**row, **_kept(caption, known.get(row[media]))} for row in rows
        ]
        return Listing(out, tuple(filled), frozenset(), caption, media)
    files, unusable = [], []
    for path in _files(source, extensions, recursive):
        name = _relative(path, out)
        shown = os.fsencode(name).decode(errors="backslashreplace")
        if shown == name:
            files.append(name)
        else:
            unusable.append(Failure(shown, "its name is not UTF-8 text: rename it"))
    listed = {row[media] for row in before}
    new = [path for path in files if path not in listed]
    rows = [*before, *({media: path} for path in new)]
    return Listing(out, tuple(rows), frozenset(new), caption, media, tuple(unusable))


def _default_out(source: Path, is_table: bool) -> Path:
    if is_table:
        return source
    name = source / _TABLE_NAME if source.is_dir() else source.with_name(f"{source.stem}.{_TABLE_NAME}")
    lines, array = (name.with_name(name.name + suffix) for suffix in (".jsonl", ".json"))
    return array if not lines.exists() and _holds_array(array) else lines


def _holds_array(path: Path) -> bool:
    """Whether a JSON file may be a table: that of a dataset has the same name, and holds an object."""
    if not path.is_file():
        return False
    with open(path, encoding="utf-8-sig", errors="replace") as file:
        return file.read(_HEAD).lstrip().startswith("[")


def _kept(caption: str, text: Any) -> Row:
    return {caption: text} if text else {}


def _rows_of(table: Path, out: Path, caption: str, media: str) -> list[Row]:
    """Rows of a table, their paths rewritten for a table at `out`."""
    rows = []
    for where, fields in numbered_rows(table):
        value = fields.get(media)
        if media not in fields:
            there = ", ".join(repr(name) for name in fields) or "none"
            raise InputError(f"{table}: {where}: no column {media!r} (there are: {there}).")
        if value is None or (isinstance(value, str) and not value.strip()):
            raise InputError(
                f"{table}: {where}: column {media!r} is empty. Give the path of a clip or take the row out."
            )
        if not isinstance(value, str):
            raise InputError(f"{table}: {where}: column {media!r} holds {value!r}, expected a path.")
        row = {
            column: cell if column == caption else _moved(cell, column, table, out)
            for column, cell in fields.items()
        }
        rows.append({**row, media: _relative(table.parent / value.strip(), out)})
    return rows


def _moved(cell: Any, column: str, table: Path, out: Path) -> Any:
    """A cell of another column for a table at `out`: paths are rewritten, anything else stays.

    Paths are what the usual column of references holds, and names of media files that are there.
    """
    parts = [part for part in split_cell(table, cell) or [] if part]
    if column != REFERENCE_COLUMN:
        stays = table.parent.absolute() == out.parent.absolute()
        parts = [] if stays or not all(_is_media(table.parent, part) for part in parts) else parts
    if not parts:
        return cell
    moved = [_relative(table.parent / part, out) for part in parts]
    return moved[0] if len(moved) == 1 else moved


def _is_media(folder: Path, name: str) -> bool:
    suffix = Path(name).suffix.lower()
    try:
        return suffix in _MEDIA_SUFFIXES and not Path(name).is_absolute() and (folder / name).is_file()
    except (OSError, ValueError):  # a text too long for a path, or with a zero byte
        return False


def _relative(path: Path, out: Path) -> str:
    return Path(os.path.relpath(path, out.parent)).as_posix()


def _files(source: Path, extensions: Iterable[str], recursive: bool) -> list[Path]:
    """Media files by suffix, sorted; nothing hidden, which is where systems and we keep other things."""
    suffixes = {"." + extension.strip().lower().lstrip(".") for extension in extensions}
    named = ", ".join(sorted(suffix[1:] for suffix in suffixes))
    if source.is_file():
        if source.suffix.lower() not in suffixes:
            raise InputError(f"{source}: neither a table nor one of {named}. See --extensions.")
        return [source]
    found = []
    for folder, folders, names in os.walk(source):
        folders[:] = [name for name in folders if recursive and not name.startswith(".")]
        found += [
            Path(folder, name)
            for name in names
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes
        ]
    if not found:
        deeper = "" if recursive else " --recursive looks into folders in it, too."
        raise InputError(f"{source}: no media files ({named}) in it.{deeper}")
    return sorted(found)
