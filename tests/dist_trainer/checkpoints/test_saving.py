from __future__ import annotations

import errno
import os
import re
import resource
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save

from dist_trainer.checkpoints import saving as module
from dist_trainer.checkpoints.checkpoint import newest, open_checkpoint
from dist_trainer.checkpoints.kept import complete_steps
from dist_trainer.checkpoints.saving import NoRoom, Piece
from dist_trainer.checkpoints.saving import save as save_together
from dist_trainer.dist import Gathering, MissingRanks
from tests.support.checkpoints import SHAPES, Values, assert_holds, owned, state, write
from tests.support.gatherings import at_once, in_memory


@pytest.mark.parametrize("writers", [1, 2, 3, 5, 16])
def test_each_rank_writes_one_file_and_only_its_own_slices(tmp_path: Path, writers: int) -> None:
    values = state(SHAPES)
    write(tmp_path, 3, SHAPES, owned(values, writers))
    folder = tmp_path / "step_000003"
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["checkpoint.json", *[f"rank_{rank:05d}_000.safetensors" for rank in range(writers)]]
    numbers = 4 * sum(len(kinds["master"]) * len(kinds) for kinds in values.values())
    headers = sum(8 + int.from_bytes((folder / name).read_bytes()[:8], "little") for name in files[1:])
    assert sum((folder / name).stat().st_size for name in files[1:]) == numbers + headers
    for readers in (1, 2, 4):
        assert_holds(open_checkpoint(tmp_path, 3), values, readers)


def test_a_large_share_is_written_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values = state(SHAPES)
    # 3 kinds of 8, 3 and 1 numbers on rank 0, 7, 2 and none on rank 1: a file is full after its first slice.
    monkeypatch.setattr(module, "_FILE_BYTES", 80)
    write(tmp_path, 3, SHAPES, owned(values, 2))
    files = sorted(path.name for path in (tmp_path / "step_000003").glob("*.safetensors"))
    assert files == [
        f"rank_{rank:05d}_{number:03d}.safetensors" for rank, number in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    for readers in (1, 3):
        assert_holds(open_checkpoint(tmp_path, 3), values, readers)


def test_saving_points_latest_at_it_and_keeps_the_last_n(tmp_path: Path) -> None:
    values = state(SHAPES)
    for step in (2, 4, 6, 8):
        write(tmp_path, step, SHAPES, owned(values, 2), keep_last_n=2)
        assert (tmp_path / "latest").read_text() == f"step_{step:06d}\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000006", "step_000008"]


DYING_CALLS = ("mkdir", "fsync", "replace", "rename", "unlink", "rmdir")


def die_at(call: int, half_written: bool) -> None:
    """From now on this process ends, as by SIGKILL, before its `call`-th change of the file system (from 0)."""
    made = 0

    def counted(original: Any) -> Any:
        def changed(*arguments: Any, **options: Any) -> Any:
            nonlocal made
            if made == call:
                os._exit(9)
            made += 1
            return original(*arguments, **options)

        return changed

    def written_by_half(tensors: dict[str, torch.Tensor], path: Path) -> None:
        content = save(tensors)
        path.write_bytes(content[: len(content) // 2])
        os._exit(9)

    for name in DYING_CALLS:
        setattr(os, name, counted(getattr(os, name)))
    if half_written:
        vars(module)["save_file"] = written_by_half


def killed_save(folder: Path, step: int, values: Values, call: int, half_written: bool = False) -> bool:
    """Save in a process that dies at `call`; returns whether it died. keep_last_n is 1: the old one goes too."""
    child = os.fork()
    if child == 0:
        try:
            die_at(call, half_written)
            save_together(folder, step, SHAPES, owned(values, 1)[0], in_memory(1)[0], 1)
        except BaseException:
            os._exit(1)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 9


def assert_whole(folder: Path, steps: dict[int, Values]) -> None:
    """A checkpoint is there, it is one of `steps`, and all that look complete are, `latest` among them."""
    found = complete_steps(folder)
    assert found
    for step in found:
        assert_holds(open_checkpoint(folder, step), steps[step])
    latest = (folder / "latest").read_text().strip()
    assert latest in [f"step_{step:06d}" for step in found]


def deaths(folder: Path, step: int, old: Path, values: Values) -> Iterator[int]:
    """For each moment of a save over a copy of `old`: the save is killed there, then the moment is given."""
    call, died = 0, True
    while died:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(old, folder)
        died = killed_save(folder, step, values, call)
        yield call
        call += 1


@pytest.mark.parametrize("step", [8, 4], ids=["next", "again"])
def test_a_save_killed_at_any_moment_leaves_only_complete_checkpoints(tmp_path: Path, step: int) -> None:
    """`again`: a step that is saved a second time, which happens when newer checkpoints were taken away."""
    before, after = state(SHAPES, 1), state(SHAPES, 2)
    old, folder = tmp_path / "old", tmp_path / "run"
    write(old, 2, SHAPES, owned(before, 1))
    write(old, 4, SHAPES, owned(before, 1))
    moments = []
    for moment in deaths(folder, step, old, after):
        moments.append(moment)
        found = newest(folder)
        assert found is not None
        renewed = step in complete_steps(folder) and torch.equal(
            open_checkpoint(folder, step).read("scale", 0, 1)["master"], after["scale"]["master"]
        )
        if step == 8:
            assert_whole(folder, {2: before, 4: before, 8: after})
        else:
            for complete in complete_steps(folder):
                new = renewed and complete == 4
                assert_holds(open_checkpoint(folder, complete), after if new else before)
        # The same command again: the save succeeds and nothing of the killed one is left.
        write(folder, step, SHAPES, owned(after, 1), keep_last_n=1)
        assert sorted(path.name for path in folder.iterdir()) == ["latest", f"step_{step:06d}"]
        assert_whole(folder, {step: after})
    assert len(moments) > 12


def test_a_file_half_written_by_a_killed_save_is_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    before = state(SHAPES, 1)
    write(tmp_path, 4, SHAPES, owned(before, 1))
    assert killed_save(tmp_path, 8, state(SHAPES, 2), call=10**9, half_written=True)
    assert (tmp_path / ".step_000008.tmp" / "rank_00000_000.safetensors").stat().st_size > 0
    assert_whole(tmp_path, {4: before})


def test_a_rank_that_does_not_come_to_a_save_leaves_no_checkpoint(tmp_path: Path) -> None:
    values = state(SHAPES)
    main = in_memory(2, timeout_s=0.2)[0]
    with pytest.raises(MissingRanks, match=r"saving step 5: written: .* missing rank 1"):
        save_together(tmp_path, 5, SHAPES, owned(values, 2)[0], main, 1)
    assert newest(tmp_path) is None


def test_a_rank_that_fails_in_a_save_leaves_no_checkpoint(tmp_path: Path) -> None:
    values = state(SHAPES)

    def failing() -> Iterator[Piece]:
        yield owned(values, 2)[1][0]
        raise OSError("no space left on device")

    def act(gathering: Gathering) -> None:
        pieces = failing() if gathering.world.rank else iter(owned(values, 2)[0])
        try:
            save_together(tmp_path, 5, SHAPES, pieces, gathering, 1)
        except OSError:
            gathering.first_to_fail()
            raise

    main, other = at_once(act, in_memory(2, timeout_s=60))
    assert isinstance(other, OSError)
    assert isinstance(main, MissingRanks)
    assert "saving step 5: written: rank 1" in str(main)
    assert complete_steps(tmp_path) == []
    assert not (tmp_path / "latest").exists()


def test_a_checkpoint_larger_than_what_is_free_is_not_begun(tmp_path: Path) -> None:
    values = state(SHAPES)
    write(tmp_path, 4, SHAPES, owned(values, 2))
    shapes = {**SHAPES, "large": (10**9, 10**9)}

    def act(gathering: Gathering) -> Path:
        return save_together(tmp_path, 8, shapes, owned(values, 2)[gathering.world.rank], gathering, 1)

    main, other = at_once(act, in_memory(2))
    assert isinstance(main, NoRoom)
    assert re.fullmatch(
        rf"{tmp_path}: a checkpoint needs 1117587\d\d\d\d\.\d GiB, \d+\.\d [GM]iB are free", str(main)
    )
    assert str(other) == str(main)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000004"]
    assert_whole(tmp_path, {4: values})


def test_a_limit_met_on_the_way_ends_a_save_alike_on_all_ranks(tmp_path: Path) -> None:
    """The process may write no more than 600 bytes to a file: the system refuses as a full disk does."""
    before, after = state(SHAPES, 1), state(SHAPES, 2)
    write(tmp_path, 4, SHAPES, owned(before, 2))

    def act(gathering: Gathering) -> Path:
        # All of it is rank 1's.
        pieces = owned(after, 1)[0] if gathering.world.rank else []
        return save_together(tmp_path, 8, SHAPES, pieces, gathering, 1)

    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, 600))
        ends = at_once(act, in_memory(2))
        said = f"{tmp_path}: File too large while rank 1 wrote to it"
        os._exit(0 if [(type(end), str(end)) for end in ends] == [(NoRoom, said)] * 2 else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["latest", "step_000004"]
    assert_whole(tmp_path, {4: before})


def test_what_has_its_name_is_saved_also_where_there_is_no_room_for_latest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, after = state(SHAPES, 1), state(SHAPES, 2)
    write(tmp_path, 4, SHAPES, owned(before, 2))

    def full(folder: Path, step: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(module, "point_latest", full)
    write(tmp_path, 8, SHAPES, owned(after, 2), keep_last_n=1)
    assert_whole(tmp_path, {4: before, 8: after})
    assert complete_steps(tmp_path) == [4, 8]
