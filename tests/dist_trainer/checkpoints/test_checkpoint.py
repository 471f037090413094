from __future__ import annotations

import json
import shutil
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dist_trainer.checkpoints.checkpoint import newest, open_checkpoint
from dist_trainer.checkpoints.saving import Piece
from shards.errors import InputError
from tests.support.checkpoints import KINDS, SHAPES, Shapes, Values, assert_holds, owned, state, write


@st.composite
def written_anyhow(draw: st.DrawFn) -> tuple[Shapes, Values, list[list[Piece]]]:
    """Parameters cut at any places, at most one slice of each on any of 1 to 5 ranks."""
    sizes = draw(st.lists(st.lists(st.integers(1, 5), max_size=3), min_size=1, max_size=4))
    shapes = {f"p{number}": tuple(size) for number, size in enumerate(sizes)}
    values = state(shapes)
    ranks = draw(st.integers(1, 5))
    pieces: list[list[Piece]] = [[] for _ in range(ranks)]
    for name, kinds in values.items():
        numel = len(kinds["master"])
        cuts = sorted({0, numel, *draw(st.lists(st.integers(0, numel), max_size=ranks - 1))})
        order = draw(st.permutations(range(ranks)))
        for rank, (start, stop) in zip(order, pairwise(cuts), strict=False):
            pieces[rank].append((name, start, stop, {k: v[start:stop] for k, v in kinds.items()}))
    return shapes, values, pieces


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(written_anyhow(), st.integers(1, 7))
def test_any_number_of_ranks_reads_what_any_other_number_wrote(
    tmp_path: Path, written: tuple[Shapes, Values, list[list[Piece]]], readers: int
) -> None:
    shapes, values, pieces = written
    shutil.rmtree(tmp_path)
    write(tmp_path, 7, shapes, pieces)
    checkpoint = open_checkpoint(tmp_path, 7)
    assert (checkpoint.step, checkpoint.shapes) == (7, shapes)
    assert set(checkpoint.kinds) == set(KINDS)
    assert_holds(checkpoint, values, readers)


def test_a_slice_nobody_wrote_is_refused_by_name(tmp_path: Path) -> None:
    values = state(SHAPES)
    [pieces] = owned(values, 1)
    write(tmp_path, 1, SHAPES, [pieces[1:]])
    checkpoint = open_checkpoint(tmp_path, 1)
    for name, stop in (("blocks.0.weight", 15), ("blocks.0.bias", 6), ("other", 1)):
        with pytest.raises(InputError, match=rf"step_000001: holds no parameter {name} "):
            checkpoint.read(name, 0, stop)


def test_a_folder_without_checkpoints_has_no_newest(tmp_path: Path) -> None:
    assert newest(tmp_path / "absent") is None
    assert newest(tmp_path) is None


def test_the_newest_is_the_newest_complete_one(tmp_path: Path) -> None:
    first, second = state(SHAPES, 1), state(SHAPES, 2)
    write(tmp_path, 4, SHAPES, owned(first, 2))
    write(tmp_path, 8, SHAPES, owned(second, 2))
    (tmp_path / "step_000012").mkdir()
    (tmp_path / ".step_000016.tmp").mkdir()
    (tmp_path / "step_000020.bak").mkdir()
    (tmp_path / "step_000024").write_text("")
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 8
    assert_holds(checkpoint, second)
    (tmp_path / "step_000008" / "checkpoint.json").unlink()
    checkpoint = newest(tmp_path)
    assert checkpoint is not None
    assert checkpoint.step == 4
    assert_holds(checkpoint, first)


@pytest.mark.parametrize("damage", ["truncated", "grown", "missing"])
def test_a_damaged_file_is_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 6, SHAPES, owned(state(SHAPES), 3))
    victim = tmp_path / "step_000006" / "rank_00001_000.safetensors"
    content = victim.read_bytes()
    if damage == "missing":
        victim.unlink()
    else:
        victim.write_bytes(content[:-1] if damage == "truncated" else content + b"\0")
    with pytest.raises(InputError, match=r"step_000006/rank_00001_000\.safetensors"):
        newest(tmp_path)


def test_a_damaged_header_is_named_when_it_is_read(tmp_path: Path) -> None:
    write(tmp_path, 6, SHAPES, owned(state(SHAPES), 1))
    victim = tmp_path / "step_000006" / "rank_00000_000.safetensors"
    victim.write_bytes(b"\xff" * victim.stat().st_size)
    with pytest.raises(InputError, match=r"step_000006/rank_00000_000\.safetensors: damaged"):
        open_checkpoint(tmp_path, 6).read("scale", 0, 1)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "step_000006/checkpoint.json: No such file or directory"),
        ("{", "step_000006: not a complete checkpoint"),
        ("[]", "step_000006: not a complete checkpoint"),
        ('{"format": 1, "files": []}', "step_000006: not a complete checkpoint .'step'"),
        (json.dumps({"format": 2}), "step_000006: checkpoint format 2; this version reads up to 1"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    folder = tmp_path / "step_000006"
    folder.mkdir()
    if content is not None:
        (folder / "checkpoint.json").write_text(content)
    with pytest.raises(InputError, match=message):
        open_checkpoint(tmp_path, 6)
