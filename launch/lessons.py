"""What the demo teaches its tiny model: a colour, what edges mean, and a shape, as clips that it has never seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

# Of the mode's recipe in configs/tiny. A clip's place, speed and backdrop are drawn from a seed.
_SEEDS = {"lora": 1, "ic_lora": 2, "full_ft": 3}
_REFERENCES = 4


def draw_clips(folder: Path, clips: int) -> dict[str, Path]:
    """Draw `clips` clips for each of three runs; returns the table of each by the name of its recipe."""
    from dist_trainer.tiny.domain import scenes
    from shards.prepare.media.shapes import NEW_COLOURS, NEW_SHAPES, write_scenes

    lessons = {
        "lora": scenes(clips, _SEEDS["lora"], colours=tuple(NEW_COLOURS)),
        "ic_lora": scenes(clips, _SEEDS["ic_lora"]),
        "full_ft": scenes(clips, _SEEDS["full_ft"], shapes=NEW_SHAPES),
    }
    return {mode: write_scenes(folder / mode, lesson) for mode, lesson in lessons.items()}


def draw_references(folder: Path, prompts: Sequence[str]) -> list[Path]:
    """Draw the edges of a clip of each prompt; the path of each as video file."""
    from dist_trainer.tiny.domain import FPS
    from shards.prepare.media.shapes import edges
    from shards.prepare.media.video import write_clip

    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number}.mp4" for number in range(1, len(prompts) + 1)]
    for file, frames in zip(files, clips_of(prompts), strict=True):
        write_clip(file, edges(frames), FPS)
    return files


def clips_of(prompts: Sequence[str]) -> list[np.ndarray]:
    """The clips uint8 [F,H,W,3] of prompts ("a red square moves left") whose edges are the references."""
    import numpy as np

    from dist_trainer.tiny.domain import FRAMES, scene_of
    from shards.prepare.media.shapes import draw

    random = np.random.Generator(np.random.PCG64(_REFERENCES))
    drawn = []
    for prompt in prompts:
        _, colour, shape, _, move = prompt.split()
        drawn.append(draw(scene_of(colour, shape, move, FRAMES, random)))
    return drawn
