"""What a folder of TensorBoard events holds."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def events(folder: Path) -> EventAccumulator:
    """Everything in a folder."""
    kinds = ("scalars", "tensors", "histograms", "images")
    return EventAccumulator(str(folder), size_guidance=dict.fromkeys(kinds, 0)).Reload()


def curve(folder: Path, name: str) -> list[tuple[int, float]]:
    """Step and value of each point of a curve."""
    return [(event.step, event.value) for event in events(folder).Scalars(name)]


def texts(folder: Path, name: str) -> list[str]:
    """All versions of a text."""
    found = events(folder).Tensors(f"{name}/text_summary")
    return [event.tensor_proto.string_val[0].decode() for event in found]
