"""Going on from the newest checkpoint that is what was saved: the ranks agree on it, and nothing is thrown away."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from dist_trainer.checkpoints import checkpoint as checkpoint_module
from dist_trainer.checkpoints.checkpoint import Checkpoint, Damaged, open_checkpoint, sum_of
from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.checkpoints.recovery import recover
from dist_trainer.dist import Gathering, MissingRanks
from shards.errors import InputError
from tests.support.checkpoints import SHAPES, assert_holds, owned, state, write
from tests.support.gatherings import at_once, in_memory

RANKS = 3


def flip(path: Path) -> None:
    """Turn one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def other_digit(path: Path) -> None:
    """What is still JSON, and of the same size, but says something else."""
    text = path.read_text()
    assert '"blocks.0.bias": [[0, 0, 2]' in text
    path.write_text(text.replace('"blocks.0.bias": [[0, 0, 2]', '"blocks.0.bias": [[0, 0, 1]'))


FAULTS: dict[str, tuple[str, Callable[[Path], None], str]] = {
    "a bit flipped": ("rank_00001_000.safetensors", flip, "other bytes than were saved"),
    "a bit flipped in another's share": ("rank_00000_000.safetensors", flip, "other bytes than were saved"),
    "cut": ("rank_00002_000.safetensors", cut, "bytes, not the "),
    "gone": ("rank_00001_000.safetensors", Path.unlink, "No such file or directory"),
    "description gone": ("checkpoint.json", Path.unlink, "No such file or directory"),
    "description cut": ("checkpoint.json", cut, "not a complete checkpoint"),
    "description changed": ("checkpoint.json", other_digit, "not what was saved"),
}


def saved(folder: Path, *steps: int) -> Path:
    """Checkpoints of 3 ranks, each of other values."""
    for step in steps:
        write(folder, step, SHAPES, owned(state(SHAPES, step), 3))
    return folder


def recovered(folder: Path, ranks: int = RANKS) -> int:
    """The step that as many ranks agree to go on from; what they have opened is whole."""
    steps = set()
    for checkpoint in at_once(lambda gathering: recover(folder, gathering), in_memory(ranks)):
        if isinstance(checkpoint, Exception):
            raise checkpoint
        steps.add(checkpoint.step if checkpoint else 0)
    assert len(steps) == 1
    [step] = steps
    if step:
        assert_holds(open_checkpoint(folder, step), state(SHAPES, step))
    return step


@pytest.mark.parametrize("ranks", [1, RANKS, 5])
def test_all_ranks_take_the_newest_and_say_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ranks: int
) -> None:
    assert recovered(saved(tmp_path, 4, 8), ranks) == 8
    assert capsys.readouterr().out == ""
    assert recovered(tmp_path / "none", ranks) == 0


@pytest.mark.parametrize("ranks", [1, RANKS])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_one_is_passed_over_renamed_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], fault: str, ranks: int
) -> None:
    name, harm, wrong = FAULTS[fault]
    victim = saved(tmp_path, 4, 8) / "step_000008" / name
    harm(victim)
    assert recovered(tmp_path, ranks) == 4
    damaged, latest = capsys.readouterr().out.splitlines()
    assert damaged.startswith(
        f"damaged checkpoint: {victim}" if wrong != "not a complete checkpoint" else "damaged"
    )
    assert wrong in damaged
    assert damaged.endswith("; kept as damaged_step_000008, which may be deleted; going on from step 4")
    assert latest.endswith("latest: now names step_000004, the newest good checkpoint")
    assert (tmp_path / "latest").read_text() == "step_000004\n"
    assert (tmp_path / "damaged_step_000008").is_dir()
    # From here on nothing counts the damaged one, and nothing deletes it or the good one in its favour.
    assert complete_steps(tmp_path) == [4]
    write(tmp_path, 8, SHAPES, owned(state(SHAPES, 8), 3), keep_last_n=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "damaged_step_000008",
        "latest",
        "step_000008",
    ]


def test_as_many_as_are_damaged_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved(tmp_path, 2, 4, 6)
    flip(tmp_path / "step_000006" / "rank_00000_000.safetensors")
    cut(tmp_path / "step_000004" / "rank_00002_000.safetensors")
    assert recovered(tmp_path) == 2
    assert capsys.readouterr().out.count("going on from step 2\n") == 2
    write(tmp_path, 6, SHAPES, owned(state(SHAPES, 6), 3))
    flip(tmp_path / "step_000006" / "rank_00000_000.safetensors")
    assert recovered(tmp_path) == 2
    assert sorted(path.name for path in tmp_path.glob("damaged_*")) == [
        "damaged_step_000004",
        "damaged_step_000006",
        "damaged_step_000006_2",
    ]


def test_a_run_whose_checkpoints_are_all_damaged_does_not_begin_anew(tmp_path: Path) -> None:
    saved(tmp_path, 4, 8)
    for step in (4, 8):
        flip(tmp_path / f"step_{step:06d}" / "rank_00001_000.safetensors")
    for _ in range(2):
        with pytest.raises(
            InputError, match=r"no good checkpoint to go on from: .*step_000008.*; .*step_000004"
        ):
            recovered(tmp_path)
    assert complete_steps(tmp_path) == [4, 8]


def test_nor_does_one_whose_good_checkpoints_were_deleted(tmp_path: Path) -> None:
    flip(saved(tmp_path, 4, 8) / "step_000008" / "rank_00001_000.safetensors")
    assert recovered(tmp_path) == 4
    for path in (tmp_path / "step_000004").iterdir():
        path.unlink()
    (tmp_path / "step_000004").rmdir()
    with pytest.raises(InputError, match="damaged_step_000008 was found damaged before"):
        recovered(tmp_path)


@pytest.mark.parametrize("content", [None, "step_000004\n", "", "\xff"])
def test_latest_is_put_right(tmp_path: Path, content: str | None) -> None:
    latest = saved(tmp_path, 4, 8) / "latest"
    latest.unlink()
    if content is not None:
        latest.write_text(content, encoding="latin-1")
    assert recovered(tmp_path) == 8
    assert latest.read_text() == "step_000008\n"


def test_a_checkpoint_saved_without_checksums_is_taken(tmp_path: Path) -> None:
    description = saved(tmp_path, 8) / "step_000008" / "checkpoint.json"
    meta = json.loads(description.read_text())
    del meta["xxh3"]
    for entry in meta["files"]:
        del entry["xxh3"]
    description.write_text(json.dumps(meta))
    assert recovered(tmp_path) == 8


def test_one_of_a_newer_format_is_not_passed_over(tmp_path: Path) -> None:
    (saved(tmp_path, 4, 8) / "step_000008" / "checkpoint.json").write_text('{"format": 2}')
    with pytest.raises(InputError, match="checkpoint format 2; this version reads up to 1"):
        recovered(tmp_path)
    assert complete_steps(tmp_path) == [4, 8]


def test_each_file_is_looked_at_and_read_by_one_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that hundreds of ranks do not ask the file system for hundreds of files each."""
    read: list[str] = []
    looked_at: list[str] = []
    stat = Path.stat

    def noted(checkpoint: Checkpoint, file: int) -> None:
        read.append(checkpoint.files[file])

    def noting(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if path.suffix == ".safetensors":
            looked_at.append(path.name)
        return stat(path, follow_symlinks=follow_symlinks)

    saved(tmp_path, 8)
    monkeypatch.setattr(Checkpoint, "verify", noted)
    monkeypatch.setattr(Path, "stat", noting)
    for checkpoint in at_once(lambda gathering: recover(tmp_path, gathering), in_memory(2)):
        assert isinstance(checkpoint, Checkpoint)
    every = [f"rank_{rank:05d}_000.safetensors" for rank in range(3)]
    assert sorted(read) == sorted(looked_at) == every


def failing_together(folder: Path) -> list[object]:
    """What each rank's recovery ends with, where one that fails says so to the others, as a run's ranks do."""

    def act(gathering: Gathering) -> Checkpoint | None:
        try:
            return recover(folder, gathering)
        except Exception:
            gathering.first_to_fail()
            raise

    return list(at_once(act, in_memory(RANKS, timeout_s=30)))


def test_a_rank_that_alone_sees_damage_is_named_and_nothing_is_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its host is at fault: the checkpoint is good, seen from rank 0."""
    saved(tmp_path, 4, 8)
    seen: list[int] = []

    def once(checkpoint: Checkpoint, file: int) -> None:
        seen.append(file)
        if file == 2 and seen.count(2) == 1:
            raise Damaged("rank_00002_000.safetensors: other bytes", file)

    monkeypatch.setattr(Checkpoint, "verify", once)
    main, *others = failing_together(tmp_path)
    assert isinstance(main, RuntimeError)
    assert str(main).startswith("rank 2 finds rank_00002_000.safetensors: other bytes; rank 0 finds it good")
    assert all(isinstance(other, MissingRanks) for other in others)
    assert complete_steps(tmp_path) == [4, 8]


def test_a_rank_that_cannot_read_ends_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not damage: a file system that does not answer may answer the next launch."""
    saved(tmp_path, 4, 8)

    def stale(path: Path) -> int:
        if path.name == "rank_00001_000.safetensors":
            raise OSError(errno.ESTALE, "Stale file handle", str(path))
        return sum_of(path)

    monkeypatch.setattr(checkpoint_module, "sum_of", stale)
    main, other, third = failing_together(tmp_path)
    assert isinstance(other, OSError)
    for waiting in (main, third):
        assert isinstance(waiting, MissingRanks)
        assert "checkpoint of step 8: reading: rank 1" in str(waiting)
    assert complete_steps(tmp_path) == [4, 8]
