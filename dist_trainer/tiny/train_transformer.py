"""Train the tiny model's transformer: python -m dist_trainer.tiny.train_transformer FOLDER, which train_vae wrote.

Draws clips, encodes them with `ltx-shards encode`, trains with the trainer as transformer.yaml says, and puts what it
exports into FOLDER in bfloat16. Run it again after a kill: it goes on where it was.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file

from dist_trainer.model.family import WEIGHTS
from dist_trainer.tiny.domain import BUCKETS, scenes
from dist_trainer.tiny.trained import new_transformer
from shards.prepare.media.shapes import write_scenes
from shards.prepare.tables.rows import read_rows, write_rows

_CONFIG = Path(__file__).with_name("transformer.yaml")
# One caption in so many is empty, so that the model can be guided away from the empty caption.
_UNCAPTIONED = 12


def prepare(model: Path, work: Path, clips: int, seed: int) -> Path:
    """Draw clips and encode them with the model's VAE and text encoder. Returns the dataset's folder."""
    table, dataset = work / "clips" / "dataset.json", work / "dataset"
    if not table.is_file():
        write_scenes(table.parent, scenes(clips, seed))
        rows = read_rows(table)
        for row in rows[::_UNCAPTIONED]:
            row["caption"] = ""
        write_rows(table, rows)
    _run(
        "shards",
        "encode",
        table,
        "--model",
        model,
        "--out",
        dataset,
        "--buckets",
        BUCKETS,
        "--reference-column",
        "",
        "--vae-batch",
        "8",
    )
    return dataset


def train(model: Path, dataset: Path, run: Path, settings: Sequence[str]) -> Path:
    """Train the transformer of `model` and return the folder of the exported one."""
    places = (
        f"model.model_source={model}",
        f"data.preprocessed_data_root={dataset}",
        f"output_dir={run}",
    )
    _run("dist_trainer.train", _CONFIG, *places, *settings)
    return max((run / "exports").iterdir()) / "transformer"


def _run(module: str, *arguments: str | Path) -> None:
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-m", module, *map(str, arguments)], env=alone, check=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Prepare, train, and replace the folder's transformer."""
    parser = argparse.ArgumentParser(prog="dist_trainer.tiny.train_transformer", description=__doc__)
    parser.add_argument("folder", type=Path, help="the pipeline that train_vae wrote")
    parser.add_argument(
        "settings", nargs="*", metavar="key=value", help="settings other than transformer.yaml's"
    )
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for the clips, the dataset and the run"
    )
    parser.add_argument("--clips", type=int, default=768)
    parser.add_argument("--seed", type=int, default=0)
    parsed = parser.parse_intermixed_args(arguments)
    dataset = prepare(parsed.folder, parsed.work, parsed.clips, parsed.seed)
    trained = train(parsed.folder, dataset, parsed.work / "run", parsed.settings)
    # Into a new one, whose config.json does not name the run's folder.
    transformer = new_transformer(parsed.seed)
    transformer.load_state_dict(load_file(trained / WEIGHTS))
    transformer.to(torch.bfloat16).save_pretrained(parsed.folder / "transformer")


if __name__ == "__main__":
    main()
