"""A training run that is hit again and again, beside the same run left alone.

    python -m tests.bench.bench_chaos --kills 20 --seed 0

The run is a job of slurm/full_ft.sh on two nodes of a Slurm of this machine's own; without root it is one of
ltx-launch local, started again as often as it ends. What hits it, and when, is drawn from the seed; a quarter of the
hits come while it is on its way back from the one before.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from dist_trainer.rundir import RunFolder
from tests.support import forked
from tests.support.audit import master_weights
from tests.support.datasets import write_dataset
from tests.support.hits import Runner, running
from tests.support.models import tiny_model, tiny_source
from tests.support.runs import tiny_config, trained, write_config

RANKS, INTERVAL, STEPS_PER_HIT = 2, 5, 20
EARLY, EARLY_S = (
    0.25,
    12.0,
)  # share of hits that do not wait for the run to be back, and within how many seconds
POLL_S, LIMIT_S = 0.05, 180.0  # the limit is for each hit


@dataclass
class Outage:
    """From a hit until the run has passed the step it was at; more hits may have come in it."""

    began: float
    first_start: int
    last_start: int = 0
    step: int = 0
    hits: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def starts(self) -> int:
        """How often ranks were started in it."""
        return self.last_start - self.first_start


class Storm:
    """The hits on one run, and what they cost."""

    def __init__(self, runner: Runner, run: RunFolder, kills: int, steps: int, draw: random.Random) -> None:
        self._runner, self._run, self._draw = runner, run, draw
        kinds = draw.sample(sorted(runner.hits), len(runner.hits))
        planned = [kinds[number % len(kinds)] for number in range(kills)]
        draw.shuffle(planned)
        moments = sorted(draw.randrange(1, steps - INTERVAL) for _ in planned)
        self._left = list(zip(moments, planned, strict=True))
        self._early: float | None = None
        self._open: Outage | None = None
        self.outages: list[Outage] = []

    def blow(self) -> None:
        """Hit the run as planned until it has ended. Raises AssertionError when it does not end."""
        deadline = time.monotonic() + LIMIT_S * (len(self._left) + 2)
        while self._runner.goes_on():
            assert time.monotonic() < deadline, f"still at step {self._step()}; to come: {self._left}"
            self._watch()
            if self._left and self._is_due(self._left[0][0]):
                self._hit(self._left[0][1])
            time.sleep(POLL_S)
        self._close()

    def _is_due(self, moment: int) -> bool:
        if self._early is not None:
            return time.monotonic() > self._early
        return self._open is None and self._step() >= moment

    def _hit(self, kind: str) -> None:
        began, starts = time.monotonic(), self._runner.starts
        if not self._runner.hits[kind](self._draw):
            return
        self._left.pop(0)
        self._open = self._open or Outage(began, starts)
        self._open.hits.append(kind)
        self._open.last_start = starts
        early = self._draw.random() < EARLY
        self._early = time.monotonic() + self._draw.uniform(0.0, EARLY_S) if early else None

    def _watch(self) -> None:
        """Close the outage when ranks that were started after its last hit have passed the step it began at."""
        if self._open is None:
            return
        if self._runner.starts == self._open.last_start:
            self._open.step = max(self._open.step, self._step())  # who was not hit may go on for a moment
        elif self._step() > self._open.step:
            self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._open.seconds = time.monotonic() - self._open.began
            self._open.last_start = self._runner.starts
            self.outages.append(self._open)
            self._open = None

    def _step(self) -> int:
        with suppress(OSError):
            return self._run.metrics.read_bytes().count(b"\n")
        return 0


def hits_table(outages: list[Outage]) -> Table:
    table = Table(
        title="What hit the run",
        caption="Seconds until the run had passed the step it was at, of hits with no other in between.",
    )
    for heading in ("hit", "times", "alone", "s, median", "s, max"):
        table.add_column(heading, justify="left" if heading == "hit" else "right")
    for kind, times in sorted(Counter(kind for outage in outages for kind in outage.hits).items()):
        alone = [outage.seconds for outage in outages if outage.hits == [kind]]
        table.add_row(kind, str(times), str(len(alone)), *_figures(alone))
    return table


def run_table(outages: list[Outage], starts: int, given_up: int, hit: Path, alone: Path) -> Table:
    def ids(run: Path) -> Counter[tuple[int, int]]:
        pairs = (zip(record["epochs"], record["ids"], strict=True) for record in trained(run))
        return Counter(pair for step in pairs for pair in step)

    own, others = master_weights(hit), master_weights(alone)
    equal = own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)
    lost, most = _figures([outage.seconds / outage.starts for outage in outages if outage.starts])
    rows: dict[str, Any] = {
        "lost samples": (ids(alone) - ids(hit)).total(),
        "repeated samples": (ids(hit) - ids(alone)).total(),
        "final weights bit-equal to the run left alone": "yes" if equal else "NO",
        "restarts": starts - 1,
        "of them by hand, as the job was given up": given_up,
        "seconds lost per restart, median": lost,
        "seconds lost per restart, max": most,
    }
    table = Table(title="The run afterwards", show_header=False)
    for name, value in rows.items():
        table.add_row(name, str(value))
    return table


def _figures(seconds: list[float]) -> tuple[str, str]:
    return (f"{median(seconds):.1f}", f"{max(seconds):.1f}") if seconds else ("", "")


def make_config(root: Path, name: str, data: Path, steps: int) -> Path:
    blocks = {
        "optimization": {"steps": steps, "learning_rate": 1e-3},
        "checkpoints": {"interval": INTERVAL, "keep_last_n": 3},
        "health": {"silent_seconds": 10.0, "hang_minutes": 1.0},
    }
    return write_config(root / f"{name}.yaml", tiny_config(tiny_model(), data, root / name, **blocks))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20, help="how often the run is hit")
    parser.add_argument("--seed", type=int, default=0, help="of what hits it, and when")
    given = parser.parse_args()
    steps = STEPS_PER_HIT * given.kills
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    sizes = json.loads((tiny_model() / "transformer" / "config.json").read_text())
    channels, text_width = sizes["in_channels"], sizes["caption_channels"]
    write_dataset(root / "data", 30, channels=channels, text_width=text_width, vae=tiny_source())
    configs = {name: make_config(root, name, root / "data", steps) for name in ("hit", "alone")}
    run = RunFolder(root / "hit")
    print(f"the run and what it prints: {root}; taken away when all went well")
    with running(configs["hit"], run, RANKS) as runner:
        storm = Storm(runner, run, given.kills, steps, random.Random(given.seed))
        storm.blow()
        starts, given_up = runner.starts, runner.given_up
    limit = LIMIT_S * (given.kills + 1)
    forked.train(RANKS, configs["alone"], logs=root / "logs", timeout_s=limit)
    Console().print(hits_table(storm.outages))
    Console().print(run_table(storm.outages, starts, given_up, run.root, root / "alone"))
    shutil.rmtree(root)


if __name__ == "__main__":
    main()
