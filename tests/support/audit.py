"""Whether a run that was disturbed is the run that was not: its samples, its losses, its weights, bit by bit."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.support.runs import losses, trained


def assert_nothing_lost(run: Path, whole: Path) -> None:
    """Each step of `run` trained the samples it trained in `whole`, none was lost or repeated; on any world size."""
    assert trained(run) == trained(whole)
    assert [record["step"] for record in trained(run)] == list(range(1, len(trained(whole)) + 1))


def assert_same_run(run: Path, whole: Path) -> None:
    """As `assert_nothing_lost`, and losses and final weights are equal to the bit: for equal world sizes."""
    assert_nothing_lost(run, whole)
    assert losses(run) == losses(whole)
    own, others = master_weights(run), master_weights(whole)
    assert own.keys() == others.keys()
    for name, value in own.items():
        assert torch.equal(value, others[name]), f"{name} differs"


def master_weights(run: Path) -> dict[str, torch.Tensor]:
    """The float32 master weights and moments in the newest checkpoint, flat, by kind and parameter name."""
    folder = run / "checkpoints" / (run / "checkpoints" / "latest").read_text().strip()
    meta = json.loads((folder / "checkpoint.json").read_text())
    stored = [load_file(folder / entry["name"]) for entry in meta["files"]]
    return {
        f"{kind}:{name}": torch.cat(
            [stored[f][f"{kind}:{name}"] for f, *_ in sorted(extents, key=lambda e: e[1])]
        )
        for name, extents in meta["slices"].items()
        for kind in meta["kinds"]
    }
