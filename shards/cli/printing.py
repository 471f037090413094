"""How a command's summary comes to its reader."""

from __future__ import annotations

from rich.console import Console, RenderableType

_WIDTH = 140  # of a pipe or a log file, which has none of its own; paths are longer than the 80 taken then


def print_summary(*parts: RenderableType) -> None:
    """Print tables and lines to standard output."""
    console = Console()
    console = console if console.is_terminal else Console(width=_WIDTH)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str), highlight=not isinstance(part, str))
