"""Models as the hub's cache holds them after a download."""

from __future__ import annotations

import shutil
from pathlib import Path

_COMMIT = "0123456789abcdef0123456789abcdef01234567"


def cache(root: Path, repository: str, files: dict[str, Path]) -> Path:
    """Put copies of `files` (name in the repository -> where it lies) into a hub cache; returns the snapshot."""
    folder = root / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(_COMMIT)
    snapshot = folder / "snapshots" / _COMMIT
    for name, source in files.items():
        (snapshot / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, snapshot / name)
    return snapshot


def files_below(folder: Path, part: str) -> dict[str, Path]:
    """The files of a part of a model folder, by their names in a repository."""
    return {str(path.relative_to(folder)): path for path in (folder / part).rglob("*") if path.is_file()}
