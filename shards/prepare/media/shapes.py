"""Small synthetic clips with captions and edge references, for demos and tests: moving coloured shapes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from rich.console import Console
from rich.progress import track

from shards.atomic import replacing
from shards.prepare.media.video import write_clip

# What `render` draws; a scene may also be of the colours and shapes that no demo clip has, to be learned later.
COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 190, 70),
    "blue": (50, 80, 230),
    "yellow": (235, 210, 40),
    "purple": (150, 60, 200),
    "white": (240, 240, 240),
}
SHAPES = ("square", "circle", "triangle", "ring")
NEW_COLOURS = {"orange": (240, 130, 20)}
NEW_SHAPES = ("star",)
MOVES = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
RADIUS = 0.22  # of a shape, as a share of the frame's shorter side
_SIZES = ((64, 64), (96, 64), (64, 96), (128, 96))
_LENGTHS = (9, 12, 17, 20, 25, 33)
_RATES = (8, 12, 24)

# Buckets that these clips fill without scaling; sizes are multiples of 32, frames are 8k + 1.
BUCKETS = ",".join(f"{width}x{height}x{frames}" for frames in (1, 9, 17, 33) for width, height in _SIZES)


class Scene(NamedTuple):
    """One shape of one colour, moving one way; 1 frame is a picture. Sizes in pixels, `speed` per frame.

    `start`: where the shape's centre is in the first frame, pixels right of and below the frame's centre. `blur`:
    how far its outline is washed out.
    """

    shape: str
    colour: str
    move: str
    width: int
    height: int
    frames: int
    fps: int
    speed: float
    backdrop: int
    start: tuple[float, float] = (0.0, 0.0)
    blur: float = 0.0

    @property
    def caption(self) -> str:
        """What a person would say of the clip."""
        article = "an" if self.colour[0] in "aeiou" else "a"
        return f"{article} {self.colour} {self.shape}" + (f" moves {self.move}" if self.frames > 1 else "")


def render(folder: Path, clips: int = 48, seed: int = 0) -> Path:
    """Write `clips` clips (one in eight a picture), each with a clip of its edges, and the table of them.

    Sizes 64x64 to 128x96, 9 to 33 frames, 8 to 24 fps, H.264 or PNG; the same files for the same seed.
    Returns the path of `folder/dataset.json` with the columns caption, media_path and reference_path.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    return write_scenes(folder, [_scene(number, random) for number in range(clips)])


def write_scenes(folder: Path, scenes: Sequence[Scene]) -> Path:
    """Write a clip of each scene, with a clip of its edges, and the table of them, as `render` does."""
    (folder / "clips").mkdir(parents=True, exist_ok=True)
    (folder / "edges").mkdir(exist_ok=True)
    table = []
    drawing = track(scenes, description="Drawing clips", console=Console(stderr=True))
    for number, scene in enumerate(drawing):
        name = f"{number:03d}.png" if scene.frames == 1 else f"{number:03d}.mp4"
        frames = draw(scene)
        write_clip(folder / "clips" / name, frames, scene.fps)
        write_clip(folder / "edges" / name, edges(frames), scene.fps)
        table.append(
            {"caption": scene.caption, "media_path": f"clips/{name}", "reference_path": f"edges/{name}"}
        )
    with replacing(folder / "dataset.json") as file:
        file.write((json.dumps(table, indent=1) + "\n").encode())
    return folder / "dataset.json"


def draw(scene: Scene) -> np.ndarray:
    """Frames of a scene, uint8 [F,H,W,3]. The shape leaves on one side and comes back on the other."""
    across, down = np.meshgrid(np.arange(scene.width), np.arange(scene.height))
    radius = min(scene.width, scene.height) * RADIUS
    step_x, step_y = MOVES[scene.move]
    colour = (COLOURS | NEW_COLOURS)[scene.colour]
    shading = np.linspace(0.6, 1.0, scene.height)[:, None, None]
    frames = np.empty((scene.frames, scene.height, scene.width, 3), np.uint8)
    for number in range(scene.frames):
        x = _wrapped(across - scene.width / 2 - scene.start[0] - step_x * scene.speed * number, scene.width)
        y = _wrapped(down - scene.height / 2 - scene.start[1] - step_y * scene.speed * number, scene.height)
        inside = covered(scene.shape, x / radius, y / radius)[..., None]
        backdrop = np.broadcast_to(scene.backdrop * shading, (scene.height, scene.width, 3))
        frames[number] = np.where(inside, colour, backdrop)
        if scene.blur:
            frames[number] = cv2.GaussianBlur(frames[number], (0, 0), scene.blur)
    return frames


def edges(frames: np.ndarray) -> np.ndarray:
    """White edges on black, uint8 [F,H,W,3]: where the gradient of one of a frame's colour channels is steep."""
    down, across = np.gradient(frames.astype(np.float32), axis=(1, 2))
    # Not of the brightness: red on a grey that is as bright has edges too.
    steep = (np.hypot(across, down) > 24).any(axis=-1)
    return np.repeat((steep * np.uint8(255))[..., None], 3, axis=-1)


def _scene(number: int, random: np.random.Generator) -> Scene:
    """Shapes, colours, sizes, lengths and rates take turns, so that few clips show all; speed is random."""
    width, height = _SIZES[(number + number // 8) % len(_SIZES)]
    return Scene(
        shape=SHAPES[number // 2 % len(SHAPES)],
        colour=list(COLOURS)[number % len(COLOURS)],
        move=list(MOVES)[number // 3 % len(MOVES)],
        width=width,
        height=height,
        frames=1 if number % 8 == 7 else _LENGTHS[number // 4 % len(_LENGTHS)],
        fps=_RATES[number // 2 % len(_RATES)],
        speed=float(random.uniform(1.0, 3.0)),
        backdrop=int(random.integers(10, 90)),
    )


def _wrapped(offset: np.ndarray, size: int) -> np.ndarray:
    return (offset + size / 2) % size - size / 2


def covered(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Which points a shape of radius 1 round the origin covers: bool of the form of `x` and `y` (y goes down)."""
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) <= 0.9
    if shape == "triangle":
        return (y <= 0.8) & (y >= 2 * np.abs(x) - 1)
    distance = np.hypot(x, y)
    if shape == "star":
        # Five points; between them the edge runs straight from radius 1 to a dent of radius 0.45.
        turn = 2 * np.pi / 5
        off = np.abs((np.arctan2(x, -y) + turn / 2) % turn - turn / 2)
        dent = 0.45
        edge = dent * np.sin(turn / 2) / (dent * np.sin(turn / 2 - off) + np.sin(off))
        return distance <= edge
    return (distance <= 1) & (distance >= (0.55 if shape == "ring" else 0))
