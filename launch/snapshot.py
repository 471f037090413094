"""The code and the config of a job, kept in its run's folder: what was edited since is not run when it comes back.

RUN/snapshots/<digest>/{shards,dist_trainer,launch}/  config.yaml
"""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

from dist_trainer.config import RunConfig, dump
from shards.atomic import sync_folder
from shards.errors import InputError

PACKAGES = ("shards", "dist_trainer", "launch")
SNAPSHOTS, CONFIG_NAME = "snapshots", "config.yaml"
_AT_ONCE = 32
_COMPILED = "__pycache__"
_UNUSED = ("dist_trainer/tiny/weights/",)  # which the demo reads, from where it is installed


def code() -> dict[str, bytes]:
    """The files of the packages by path, as they are now."""
    files: dict[str, bytes] = {}
    for package in PACKAGES:
        root = _root(package)
        for path in sorted(root.rglob("*")):
            name = f"{package}/{path.relative_to(root).as_posix()}"
            if path.is_file() and _COMPILED not in path.parts and not name.startswith(_UNUSED):
                files[name] = path.read_bytes()
    return files


def with_config(files: Mapping[str, bytes], config: RunConfig) -> dict[str, bytes]:
    """The same, and the resolved config beside them."""
    return {**files, CONFIG_NAME: dump(config).encode()}


def place(run: Path, files: Mapping[str, bytes]) -> Path:
    """Where `take` puts these files: a folder named by what is in them."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {len(content)}\n".encode())
        digest.update(content)
    return run / SNAPSHOTS / digest.hexdigest()[:16]


def take(run: Path, files: Mapping[str, bytes]) -> Path:
    """Write the files into the run's folder, whole or not at all; returns their folder.

    Raises InputError where the run's folder cannot be written.
    """
    final = place(run, files)
    if final.is_dir():
        return final
    temporary = final.with_name(f".{final.name}.{secrets.token_hex(4)}.tmp")
    try:
        for name in files:
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
        # A disk takes as long for many files at once as for one.
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            list(pool.map(_write, (temporary / name for name in files), files.values()))
        for folder, _, _ in os.walk(temporary):
            sync_folder(Path(folder))
        _move(temporary, final)
        sync_folder(final.parent)
    except OSError as error:
        raise InputError(f"output_dir: {run}: cannot be written: {error}; choose another folder") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return final


def _write(path: Path, content: bytes) -> None:
    """To the disk, before a job can begin that runs it for weeks."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _move(folder: Path, final: Path) -> None:
    """Rename; where another launch came first with the same files, theirs stay."""
    try:
        folder.rename(final)
    except OSError:
        if not final.is_dir():
            raise


def _root(package: str) -> Path:
    found = find_spec(package)
    assert found is not None, f"{package} is not installed"
    assert found.submodule_search_locations, f"{package} is no folder"
    return Path(found.submodule_search_locations[0])
