"""What the demo's runs learned, read from their folders: sample videos probed, held-out losses, before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.table import Table

from dist_trainer.config import RunConfig, load
from dist_trainer.logs import read_log
from dist_trainer.rundir import RunFolder

if TYPE_CHECKING:
    import numpy as np

_UNSEEN = "loss on unseen clips"


def samples(run: Path, last: bool) -> list[np.ndarray]:
    """The sample videos, uint8 [F,H,W,3], that a run made after its last step, or before its first one.

    The references beside them are left out.
    """
    from dist_trainer.validation.show import read

    config = _config(run)
    step = config.optimization.steps if last else 0
    width = config.validation.video_dims[0]
    files = sorted((RunFolder(run).samples / f"step_{step:06d}").glob("*.mp4"))
    return [read(path)[:, :, -width:] for path in files]


def showing(videos: Sequence[np.ndarray], colour: str) -> float:
    """Share, in [0,1], of videos that show something of this colour."""
    from dist_trainer.tiny.probe import look

    return sum(look(video).colour == colour for video in videos) / len(videos)


def heldout(run: Path, name: str = "loss") -> tuple[float, float]:
    """A held-out figure of a run, by the end of its name, before the first step and after the last one."""
    key = f"heldout/{name}"
    found = {line["step"]: line[key] for line in read_log(RunFolder(run).figures) if key in line}
    return float(found[0]), float(found[_config(run).optimization.steps])


def table(runs: Path) -> Table:
    """What each of the demo's three runs taught, before and after."""
    made = Table(title="what the runs learned", title_justify="left")
    for column in ("run", "figure", "before", "after"):
        made.add_column(column, justify="right" if column in ("before", "after") else "left")
    for name, rows in (
        ("lora: new colour", _colour(runs / "lora", "orange")),
        ("ic_lora: edges", _edges(runs / "ic_lora")),
        ("full_ft: new shape", [_losses(runs / "full_ft", _UNSEEN)]),
    ):
        for number, row in enumerate(rows):
            made.add_row("" if number else name, *row)
    return made


_Row = tuple[str, str, str]


def _colour(run: Path, colour: str) -> list[_Row]:
    shares = [showing(samples(run, last), colour) for last in (False, True)]
    before, after = (f"{share:.0%}" for share in shares)
    return [(f"videos that are {colour}", before, after), _losses(run, _UNSEEN)]


def _edges(run: Path) -> list[_Row]:
    return [
        _losses(run, f"{_UNSEEN}, true edges", "reference_true"),
        _losses(run, "... another clip's edges", "reference_shuffled"),
        _losses(run, "... no edges", "reference_absent"),
    ]


def _losses(run: Path, figure: str, name: str = "loss") -> _Row:
    before, after = heldout(run, name)
    return figure, f"{before:.3f}", f"{after:.3f}"


def _config(run: Path) -> RunConfig:
    return load(RunFolder(run).config)
