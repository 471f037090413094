"""How a command's summary comes to its reader."""

from __future__ import annotations

import os

from rich.console import Console, RenderableType

_WIDTH = 140  # of a pipe or a log file, which has none of its own; paths are longer than the 80 taken then


def print_summary(*parts: RenderableType) -> None:
    """Print tables and lines to standard output."""
    console = Console()
    # What `srun --unbuffered` writes into a file comes from a terminal too, but nobody types at that one.
    unseen = "SLURM_STEP_ID" in os.environ and not os.isatty(0)
    if unseen or not console.is_terminal:
        console = Console(width=_WIDTH, force_terminal=False if unseen else None)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), highlight=not isinstance(part, str))
