"""What the demo shows, without its launchers and kills: its recipes teach the trained tiny model what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from dist_trainer.config import load
from dist_trainer.tiny.domain import BUCKETS
from dist_trainer.tiny.trained import WEIGHTS
from launch.learned import heldout, samples, showing, table
from launch.lessons import clips_of, draw_clips, draw_references
from shards.geometry import Bucket
from shards.prepare.encode.stage import encode
from tests.support.forked import several
from tests.support.runs import write_config

RECIPES = Path(__file__).parents[2] / "configs" / "tiny"

pytestmark = pytest.mark.timeout(1200)


def config(root: Path, mode: str, **validation: Any) -> Path:
    """The recipe, but for its folders, and with videos before its first and after its last step alone."""
    recipe = RECIPES / f"{mode}.yaml"
    described = {
        "extends": str(recipe),
        "model": {"model_source": str(WEIGHTS)},
        "data": {"preprocessed_data_root": str(root / "data" / mode)},
        "validation": {"interval": load(recipe).optimization.steps, **validation},
        "checkpoints": {"interval": None},
        "deepspeed": {"stage": 1},
        "health": {"preflight": False},
        "output_dir": str(root / "runs" / mode),
    }
    return write_config(root / f"{mode}.yaml", described)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the demo's three runs, on two ranks."""
    root = tmp_path_factory.mktemp("demo")
    references = draw_references(root / "references", load(RECIPES / "ic_lora.yaml").validation.prompts)
    for mode, rows in draw_clips(root / "clips", 64).items():
        encode(rows, WEIGHTS, root / "data" / mode, Bucket.parse_list(BUCKETS))
    configs = (
        config(root, "lora"),
        config(root, "ic_lora", reference_videos=[str(path) for path in references]),
        config(root, "full_ft"),
    )
    several(2, *configs, logs=root / "logs", timeout_s=1000)
    return root / "runs"


def overlap(frames: np.ndarray, others: np.ndarray) -> float:
    """How far two clips show something bright at the same place: intersection over union."""
    ours, theirs = (clip.max(axis=-1) > 125 for clip in (frames, others))
    both, either = (joined.sum(axis=(1, 2)) for joined in (ours & theirs, ours | theirs))
    return float(np.mean(both / np.maximum(either, 1)))


def test_a_lora_teaches_a_colour(runs: Path) -> None:
    assert showing(samples(runs / "lora", last=False), "orange") <= 0.25
    assert showing(samples(runs / "lora", last=True), "orange") >= 0.75
    before, after = heldout(runs / "lora")
    assert after < 0.9 * before


def test_an_ic_lora_uses_its_reference(runs: Path) -> None:
    run = runs / "ic_lora"
    before, true = heldout(run, "reference_true")
    assert true < 0.5 * before
    assert true < 0.7 * heldout(run, "reference_shuffled")[1]
    meant = clips_of(load(RECIPES / "ic_lora.yaml").validation.prompts)
    own, other = (
        np.mean([overlap(video, clip) for video, clip in zip(samples(run, last=True), clips, strict=True)])
        for clips in (meant, meant[1:] + meant[:1])
    )
    assert own > other + 0.15


def test_full_training_lowers_the_loss_on_unseen_clips_of_a_new_shape(runs: Path) -> None:
    before, after = heldout(runs / "full_ft")
    assert after < 0.75 * before


def test_the_demo_s_table_tells_it(runs: Path) -> None:
    console = Console(width=120, record=True, file=(runs / "table.txt").open("w"))
    console.print(table(runs))
    shown = console.export_text()
    before, after = heldout(runs / "full_ft")
    orange = f"{showing(samples(runs / 'lora', last=True), 'orange'):.0%}"
    for part in ("new colour", orange, "edges", "new shape", f"{before:.3f}", f"{after:.3f}"):
        assert part in shown, shown
