"""The other parts of a base model beside an exported transformer: a folder that LTXPipeline.from_pretrained opens."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Literal

from shards.atomic import replacing
from shards.errors import InputError

INDEX = "model_index.json"
Parts = Literal["link", "copy"]


def add_parts(folder: Path, source: str, how: Parts) -> None:
    """Put model_index.json and all parts of the base `source` but its transformer into `folder`.

    Raises InputError unless the base is a local folder in diffusers' layout.
    """
    base = Path(source).expanduser()
    index = base / INDEX
    if not index.is_file():
        raise InputError(
            f"--pipeline: model.model_source {source} is not a local pipeline folder (with {INDEX}); open it as "
            "LTXPipeline.from_pretrained(base, transformer=...) with the exported transformer instead"
        )
    try:
        parts = [
            name for name, kind in json.loads(index.read_text(encoding="utf-8")).items() if _is_part(kind)
        ]
    except (ValueError, AttributeError) as error:
        raise InputError(f"--pipeline: {index}: not a pipeline's index: {error}") from error
    for name in parts:
        if name == "transformer":
            continue
        if not (base / name).is_dir():
            raise InputError(f"--pipeline: {base}: folder has no {name}/, which its {INDEX} names")
        if how == "link":
            os.symlink((base / name).resolve(), folder / name)
        else:
            shutil.copytree(base / name, folder / name, copy_function=_copy)
    _copy(index, folder / INDEX)


def _copy(source: str | Path, target: str | Path) -> None:
    with open(source, "rb") as file, replacing(Path(target)) as copy:
        shutil.copyfileobj(file, copy)


def _is_part(kind: object) -> bool:
    """Whether an entry of the index names the class of a part: `[library, class]`; `[null, null]` is left out."""
    return isinstance(kind, list) and len(kind) == 2 and None not in kind
