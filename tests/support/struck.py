"""A training rank that is struck at set moments of its work: python -m tests.support.struck STRIKES CONFIG

STRIKES is a list in JSON; each rank carries out its own. What strikes is real: a signal, a file, a full disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.forked import Ended, launch

# At a step's begin, before a forward pass, before a step's update, before and after this rank's file of a checkpoint,
# before a checkpoint gets its name, when a sample video's next denoising step is begun and when it is decoded, before
# the VAE for that is loaded, before the export, before the exit code 85.
MOMENTS = {
    "step": ("dist_trainer.loop", "StepSums"),
    "forward": ("dist_trainer.model.engine", "Engine.forward"),
    "update": ("dist_trainer.model.engine", "Engine.step"),
    "write": ("dist_trainer.checkpoints.saving", "save_file"),
    "wrote": ("dist_trainer.checkpoints.saving", "sum_of"),
    "name": ("dist_trainer.checkpoints.saving", "_complete"),
    "denoised": ("dist_trainer.validation.sampler", "asked"),
    "decode": ("dist_trainer.validation.sampler", "decode"),
    "vae": ("dist_trainer.validation.sampler", "load_vae"),
    "export": ("dist_trainer.run", "export_end"),
    "leave": ("dist_trainer.train", "_come_back"),
}


@dataclass(frozen=True)
class Strike:
    """At the `count`-th such moment (from 1) rank `rank` is sent a signal, puts STOP or SAVE, fills the disk, has no
    memory left, or waits no longer for an export once it is told to stop."""

    rank: int
    moment: str
    count: int
    act: str


def strike(size: int, config: Path, strikes: Sequence[Strike], logs: Path, **settings: Any) -> Ended:
    """Run a launch of `size` ranks that are struck; `settings` as of `forked.launch`."""
    settings.setdefault("timeout_s", 240.0)
    described = json.dumps([asdict(each) for each in strikes])
    return launch(size, described, config, logs=logs, module="tests.support.struck", **settings)


def main(described: str, config: str) -> None:
    """Be a rank; ends the process."""
    from dist_trainer.config import load
    from dist_trainer.train import entry

    run = Path(load(Path(config)).output_dir)
    rank = int(os.environ.get("RANK", "0"))
    own = [Strike(**each) for each in json.loads(described) if each["rank"] == rank]
    for moment, (module, name) in MOMENTS.items():
        *parents, attribute = name.split(".")
        holder = sys.modules[module]
        for parent in parents:
            holder = getattr(holder, parent)
        at = [each for each in own if each.moment == moment]
        setattr(holder, attribute, _struck(getattr(holder, attribute), at, run))
    entry([config])


def _struck(original: Callable[..., Any], strikes: list[Strike], run: Path) -> Callable[..., Any]:
    count = 0

    def called(*arguments: Any, **options: Any) -> Any:
        nonlocal count
        count += 1
        for each in strikes:
            if each.count == count:
                _act(each.act, run)
        return original(*arguments, **options)

    return called


def _act(act: str, run: Path) -> None:
    if act in ("STOP", "SAVE"):
        (run / act).touch()
    elif act == "NO PATIENCE":
        from dist_trainer import stop

        stop._PATIENCE_S = 0.0
    elif act == "NO MEMORY":
        import torch

        raise torch.OutOfMemoryError("no memory is left")
    elif act == "FULL":
        with contextlib.suppress(OSError), (run / "checkpoints" / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"\0" * 4096)
    else:
        os.kill(os.getpid(), signal.Signals[act])


if __name__ == "__main__":
    main(*sys.argv[1:])
