"""The videos a user means by files and folders, and a name of its own for each."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from shards.errors import InputError
from shards.prepare.split.record import Record, real_path, size_of

_USUAL = "3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv ts webm wmv"
EXTENSIONS = tuple(_USUAL.split())


class Video(NamedTuple):
    """A file, and its name among the others: a path without a suffix, with slashes."""

    path: Path
    name: str


def find_videos(
    inputs: Sequence[Path],
    recursive: bool,
    leave: Path,
    split: Mapping[str, Record] = {},
    extensions: Sequence[str] = EXTENSIONS,
) -> list[Video]:
    """The videos among `inputs` and in their folders, each once, by name; nothing hidden, nothing below `leave`.

    Of a folder those are taken whose name ends in one of `extensions`, in whatever case.

    A name is the path in the folder that was given, without its suffix. Where two would share it, it ends in
    the suffix too, and where they share even that, in a hash of the path. A video that was `split` before, by
    the records of such under their names, has the name it had then, whatever is given beside it now, and
    another that would have this name ends in a hash. Raises InputError where an input does not exist or there
    is no video.
    """
    suffixes = {"." + extension.strip().lower().lstrip(".") for extension in extensions}
    found: dict[Path, tuple[Path, Path]] = {}  # by real path: as given, and relative to what was given
    for given in inputs:
        if given.is_dir():
            for path in _in_folder(given, recursive, leave, suffixes):
                found.setdefault(path.resolve(), (path, path.relative_to(given)))
        elif given.is_file():
            found.setdefault(given.resolve(), (given, Path(given.name)))
        else:
            raise InputError(f"{given}: no such video or folder")
    if not found:
        where = ", ".join(map(str, inputs))
        more = "" if recursive else "; --recursive looks into folders below"
        raise InputError(
            f"{where}: no video in it ({' '.join(sorted(suffix[1:] for suffix in suffixes))}){more}"
        )
    names = {real: relative.with_suffix("").as_posix() for real, (_, relative) in found.items()}
    for real in _sharing(names):
        relative = found[real][1]
        names[real] = relative.with_name(f"{relative.stem}_{relative.suffix[1:]}").as_posix()
    for real in _sharing(names):
        names[real] = _hashed(names[real], real)
    names |= _names_of_old(names, split)
    return sorted(
        (Video(path, names[real]) for real, (path, _) in found.items()), key=lambda video: video.name
    )


def _sharing(names: dict[Path, str]) -> list[Path]:
    """Those whose name is another's too."""
    count = Counter(names.values())
    return [path for path, name in names.items() if count[name] > 1]


def _hashed(name: str, path: Path) -> str:
    return f"{name}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"


def _names_of_old(names: Mapping[Path, str], split: Mapping[str, Record]) -> dict[Path, str]:
    """Names where those of videos that were split before change something.

    They are the same for a worker that comes late, when others have added records of the same videos.
    """
    old = {record["path"]: name for name, record in split.items()}
    changed = {}
    for path, name in names.items():
        if real_path(path) in old:
            changed[path] = old[real_path(path)]
        elif name in split and not _was_moved(split[name], path):
            changed[path] = _hashed(name, path)
    return changed


def _was_moved(record: Record, path: Path) -> bool:
    """Whether a file of that name may be the video of the record, at another place now."""
    return record["size"] == size_of(path) and not Path(record["path"]).exists()


def _in_folder(folder: Path, recursive: bool, leave: Path, suffixes: Collection[str]) -> Iterator[Path]:
    for place, folders, names in os.walk(folder):
        folders[:] = [
            name
            for name in folders
            if recursive and not name.startswith(".") and Path(place, name).resolve() != leave.resolve()
        ]
        for name in names:
            if Path(name).suffix.lower() in suffixes and not name.startswith("."):
                yield Path(place, name)
