"""What exports tell of the data a run learned from. Kept with the run: its dataset may be gone by then."""

from __future__ import annotations

import json
from contextlib import suppress

import numpy as np

from dist_trainer.rundir import RunFolder, write_text
from shards.dataset.encoding import JOB
from shards.dataset.opened import Dataset
from shards.formats.text import parse_json
from shards.storage import open_storage


def keep_facts(folder: RunFolder, dataset: Dataset, references: bool) -> None:
    """Write the run's facts.json; `references`: whether it learns from the dataset's references."""
    facts = {"trigger_word": _trigger(dataset), **(_reference_scale(dataset) if references else {})}
    known = {key: value for key, value in facts.items() if value}
    write_text(folder.facts, json.dumps(known, indent=2) + "\n")


def read_facts(folder: RunFolder) -> dict[str, str]:
    """The facts of a run as texts, by the names they have in a file's header; none where none were kept."""
    with suppress(OSError, ValueError, AttributeError):
        return {
            key: str(value) for key, value in json.loads(folder.facts.read_text(encoding="utf-8")).items()
        }
    return {}


def _trigger(dataset: Dataset) -> str:
    """The word that `ltx-shards encode --id-token` put before every caption; empty where there is none."""
    # The notes of the encoding are no part of the dataset: a copy may lack them, a web server may refuse them.
    with suppress(Exception):
        described = parse_json(open_storage(dataset.root).read(f"{JOB}/job.json"))
        return str(described["identity"]["id_token"] or "").strip()
    return ""


def _reference_scale(dataset: Dataset) -> dict[str, int]:
    """How many times smaller references are than their targets, where that is one number for all samples."""
    manifest = dataset.manifest
    if not manifest.references.shape[1]:
        return {}
    targets = np.repeat(manifest.grid[:, None], manifest.references.shape[1], axis=1)
    there = manifest.references.any(axis=2)
    pairs = np.unique(np.concatenate([targets[there], manifest.references[there]], axis=1), axis=0)
    sides = {(int(t), int(r)) for row in pairs for t, r in ((row[1], row[4]), (row[2], row[5]))}
    times = {(int(row[0]) - 1, int(row[3]) - 1) for row in pairs if row[3] > 1}
    factors = {"reference_downscale_factor": sides, "reference_temporal_scale_factor": times}
    found = {key: {large / small for large, small in sizes} for key, sizes in factors.items()}
    return {key: int(min(ratios)) for key, ratios in found.items() if len(ratios) == 1}
