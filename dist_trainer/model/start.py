"""What `model.load_checkpoint` names: where the weights lie, and whether they are an adapter or a whole model.

Told from names and headers alone, so it imports without torch. A run decides it at its first launch and keeps it in its
state: "the newest file of a folder" may be another one at a restart.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dist_trainer.checkpoints.kept import META, complete_steps, is_of, name_of, steps_there
from dist_trainer.model.family import LORA_FILE, WEIGHTS
from dist_trainer.model.weights import opened
from dist_trainer.rundir import RunFolder
from shards.errors import InputError

SETTING = "model.load_checkpoint"
_STEP = re.compile(r"step_(\d+)")
Kind = Literal["adapter", "full"]


@dataclass(frozen=True)
class Start:
    """Weights to start from: an adapter or a whole model, in a file, a transformer's folder, or a run's checkpoint."""

    kind: Kind
    place: str

    @property
    def path(self) -> Path:
        """The place as a path."""
        return Path(self.place)

    @property
    def is_checkpoint(self) -> bool:
        """Whether the place is a checkpoint folder of a run of ours."""
        return self.path.is_dir() and not _is_transformer(self.path)


def find_start(given: str, mode: Literal["lora", "full"]) -> Start:
    """What `given` names, for a run in `mode`: a file, or the newest weights in a folder.

    A folder: a run (its newest checkpoint, or export), an export, a pipeline, a transformer, or one with files named
    `...step_<number>.safetensors`. Raises InputError when there are no weights, or not of a kind
    that `mode` starts from.
    """
    place = _newest(Path(given).expanduser()).resolve()
    kind = _kind(place)
    if kind == "adapter" and mode == "full":
        raise InputError(
            f"{SETTING}: {place}: is a LoRA, and model.training_mode is full; use training_mode lora, or merge it into "
            "its base first (`ltx-train export RUN --merge`)"
        )
    if kind == "full" and mode == "lora":
        place = _lasting(place)
    return Start(kind, str(place))


def _lasting(place: Path) -> Path:
    """The export of a checkpoint, where there is one: a frozen base is read at every restart, and checkpoints go."""
    run = RunFolder(place.parent.parent)
    exported = run.exports / place.name / "transformer"
    there = place.parent == run.checkpoints and _is_transformer(exported) and is_of(exported, place)
    return exported if there else place


def _newest(given: Path) -> Path:
    """The file, transformer folder or checkpoint folder that a path stands for."""
    if given.is_file():
        if given.suffix != ".safetensors":
            raise InputError(f"{SETTING}: {given}: weights are read from .safetensors files only")
        return given
    if not given.is_dir():
        raise InputError(f"{SETTING}: {given}: no such file or folder")
    looks: tuple[Callable[[Path], Path | None], ...] = (_in_run, _in_checkpoints, _whole, _by_step, _single)
    for look in looks:
        if found := look(given):
            return found
    raise InputError(
        f"{SETTING}: {given}: no weights in this folder; name a .safetensors file, an export, or a run's folder"
    )


def _in_run(folder: Path) -> Path | None:
    """The newest checkpoint or export of a run of ours; of one step, the checkpoint, which is exact."""
    run = RunFolder(folder)
    if not run.config.is_file():
        return None
    saved, exported = complete_steps(run.checkpoints), steps_there(run.exports)
    if exported and (not saved or exported[-1] > saved[-1]):
        return _newest(run.exports / name_of(exported[-1]))
    return run.checkpoints / name_of(saved[-1]) if saved else None


def _in_checkpoints(folder: Path) -> Path | None:
    """A checkpoint folder itself, or the newest one in a folder of them."""
    if (folder / META).is_file():
        return folder
    steps = complete_steps(folder)
    return folder / name_of(steps[-1]) if steps else None


def _whole(folder: Path) -> Path | None:
    return next((place for place in (folder, folder / "transformer") if _is_transformer(place)), None)


def _by_step(folder: Path) -> Path | None:
    """The file of the highest step, in the folder or in `checkpoints/`, where LTX-Video-Trainer puts them."""
    found = [*folder.glob("*step_*.safetensors"), *folder.glob("checkpoints/*step_*.safetensors")]
    numbered = [(int(match[1]), file) for file in found if (match := _STEP.search(file.name))]
    return max(numbered)[1] if numbered else None


def _single(folder: Path) -> Path | None:
    named, files = folder / LORA_FILE, sorted(folder.rglob("*.safetensors"))
    if named.is_file():
        return named
    if len(files) > 1:
        raise InputError(f"{SETTING}: {folder}: holds {len(files)} .safetensors files; name one of them")
    return files[0] if files else None


def _is_transformer(folder: Path) -> bool:
    return (folder / WEIGHTS).is_file() or (folder / f"{WEIGHTS}.index.json").is_file()


def _kind(place: Path) -> Kind:
    """Whether a place holds an adapter, told from the names of its tensors."""
    if (place / META).is_file():
        text = (place / META).read_text(encoding="utf-8", errors="replace")
        return "adapter" if ".lora_A." in text else "full"
    if place.is_dir():
        return "full"
    with opened(place, "np", SETTING) as file:
        return "adapter" if any(".lora" in name for name in file.keys()) else "full"  # noqa: SIM118
