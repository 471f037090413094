from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dist_trainer.exporting.facts import keep_facts, read_facts
from dist_trainer.rundir import RunFolder
from tests.support.datasets import write_dataset

GRIDS = ((1, 4, 4), (3, 4, 8))
SMALL = ((1, 2, 2), (3, 2, 4))
FEW = ((1, 2, 2), (2, 2, 4))


def facts(tmp_path: Path, references: Any, learned: bool = True, notes: str | None = None) -> dict[str, str]:
    dataset = write_dataset(tmp_path / "data", 4, grids=GRIDS, references=references)
    if notes is not None:
        (tmp_path / "data" / ".encode").mkdir()
        (tmp_path / "data" / ".encode" / "job.json").write_text(notes)
    run = RunFolder(tmp_path)
    keep_facts(run, dataset, learned)
    return read_facts(run)


@pytest.mark.parametrize(
    ("references", "learned", "expected"),
    [
        (GRIDS, True, {"reference_downscale_factor": "1", "reference_temporal_scale_factor": "1"}),
        (SMALL, True, {"reference_downscale_factor": "2", "reference_temporal_scale_factor": "1"}),
        (FEW, True, {"reference_downscale_factor": "2", "reference_temporal_scale_factor": "2"}),
        # Of no one size: a reader that takes one number for all would be misled.
        ((GRIDS[0], SMALL[1]), True, {"reference_temporal_scale_factor": "1"}),
        (SMALL, False, {}),
        ((None,), True, {}),
    ],
)
def test_how_much_smaller_references_are_is_told_where_it_is_one_number(
    tmp_path: Path, references: Any, learned: bool, expected: dict[str, str]
) -> None:
    assert facts(tmp_path, references, learned) == expected


@pytest.mark.parametrize(
    ("notes", "word"),
    [
        (json.dumps({"units": 1, "identity": {"id_token": " NIMBUS "}}), "NIMBUS"),
        (json.dumps({"units": 1, "identity": {"id_token": None}}), None),
        ("{", None),
        (None, None),
    ],
)
def test_the_trigger_word_is_the_encodings(tmp_path: Path, notes: str | None, word: str | None) -> None:
    assert facts(tmp_path, (None,), notes=notes).get("trigger_word") == word


def test_a_run_that_kept_no_facts_has_none(tmp_path: Path) -> None:
    assert read_facts(RunFolder(tmp_path)) == {}
    (tmp_path / "facts.json").write_text("[1]")
    assert read_facts(RunFolder(tmp_path)) == {}
