"""A tiny run with one thing wrong, and how it has to end."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from shards.dataset.opened import Dataset
from shards.pack import costs, pack
from shards.plan import Batching, Plan
from tests.support.forked import Ended, launch
from tests.support.runs import tiny_config, write_config

# Seconds from the first rank's end to the last one's; measured: 0.1 to 3.
TOGETHER_S = 20.0


class Bench:
    """A tiny config with one thing changed, run on some ranks."""

    def __init__(self, root: Path, model: Path, dataset: Dataset) -> None:
        self.root, self.model, self.dataset = root, model, dataset

    @property
    def output(self) -> Path:
        """The run's folder."""
        return self.root / "run"

    def config(self, **blocks: Any) -> Path:
        """The config, `blocks` laid over it."""
        described = tiny_config(self.model, self.dataset.root, self.output, **blocks)
        return write_config(self.root / "config.yaml", described)

    def run(self, *overrides: str, size: int = 1, blocks: dict[str, Any], **settings: Any) -> Ended:
        """Train it on `size` ranks; `settings` are fields of a Launch."""
        return launch(size, self.config(**blocks), *overrides, logs=self.root / "logs", **settings)

    def copy_of_dataset(self) -> Path:
        """A dataset to damage."""
        return Path(shutil.copytree(self.dataset.root, self.root / "data"))

    def copy_of_model(self) -> Path:
        """A model folder to damage."""
        return Path(shutil.copytree(self.model, self.root / "model"))


def assert_refused(ended: Ended, *named: str | Path, code: int = 2) -> None:
    """One message over all ranks, in it everything `named`; no traceback; all end, together, and none with 0."""
    assert not ended.timed_out, str(ended)
    assert code in ended.codes, str(ended)
    assert 0 not in ended.codes, str(ended)
    assert ended.seconds_after_first < TOGETHER_S, str(ended)
    assert len(ended.errors) == 1, str(ended)
    assert "Traceback" not in "".join(ended.stderr), str(ended)
    for part in named:
        assert str(part) in ended.errors[0], f"{part!r} is not in: {ended.errors[0]}"


def only_row(dataset: Dataset, step: int, rank: int, size: int) -> int:
    """A sample that `rank` alone reads in a step."""
    manifest = dataset.manifest
    plan = Plan(manifest.ids, manifest.target_tokens(), Batching(7, None), seed=42)
    rows = plan.step(step).rows
    tokens = plan.tokens[rows]
    positions = pack(tokens, costs(tokens, 1 / 448), size, int(plan.tokens.max()) * 2).packs[0][rank]
    return int(rows[positions[0]])
