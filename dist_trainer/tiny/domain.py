"""What the trained tiny model knows: small clips of one coloured shape that moves one way, and their captions."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import numpy as np

from shards.prepare.media.shapes import COLOURS, MOVES, SHAPES, Scene

SIZE = 64  # pixels, both sides
FRAMES = 9
FPS = 10
BUCKETS = f"{SIZE}x{SIZE}x{FRAMES},{SIZE}x{SIZE}x1"
_WANDER = 6.0  # pixels from the frame's centre to the middle of a path, along each axis, at most
_SPEEDS = (1.5, 2.5)  # pixels a frame: a shape never leaves the frame
_BACKDROPS = (10, 90)
_BLUR = 1.5  # a small VAE draws soft outlines far better than sharp ones


def scenes(
    count: int,
    seed: int,
    colours: Sequence[str] = tuple(COLOURS),
    shapes: Sequence[str] = SHAPES,
    pictures: int = 8,
) -> list[Scene]:
    """`count` scenes, every combination of colour, shape and move as often as any other, in random order.

    Place, speed and backdrop are random. One scene in `pictures` (0: none) is a picture of one frame. The same for
    the same arguments.
    """
    random = np.random.Generator(np.random.PCG64(seed))
    kinds = list(product(colours, shapes, MOVES))
    rounds = [random.permutation(len(kinds)) for _ in range(-(-count // len(kinds)))]
    chosen = [kinds[number] for number in np.concatenate(rounds)[:count]]
    return [
        scene_of(
            colour,
            shape,
            move,
            1 if pictures and number % pictures == pictures - 1 else FRAMES,
            random,
        )
        for number, (colour, shape, move) in enumerate(chosen)
    ]


def scene_of(colour: str, shape: str, move: str, frames: int, random: np.random.Generator) -> Scene:
    """One scene of the domain, its place, speed and backdrop drawn from `random`."""
    speed = float(random.uniform(*_SPEEDS))
    middle = random.uniform(-_WANDER, _WANDER, size=2)
    back = speed * (frames - 1) / 2
    step_x, step_y = MOVES[move]
    return Scene(
        shape=shape,
        colour=colour,
        move=move,
        width=SIZE,
        height=SIZE,
        frames=frames,
        fps=FPS,
        speed=speed,
        backdrop=int(random.integers(*_BACKDROPS)),
        start=(float(middle[0] - step_x * back), float(middle[1] - step_y * back)),
        blur=_BLUR,
    )
