"""Runs that die or stand still: one line over all ranks says who, where and why, stacks are kept, every rank ends."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from dist_trainer.rundir import RunFolder
from shards.dataset.opened import Dataset
from tests.support.bench import Bench
from tests.support.forked import Ended, Kill
from tests.support.runs import trained

pytestmark = pytest.mark.timeout(300)

SILENT_S, HANG_S = 5.0, 8.0
LIMITS = {"health": {"silent_seconds": SILENT_S, "hang_minutes": HANG_S / 60}}
MANY = {"optimization": {"steps": 5000}}


@pytest.fixture
def bench(tmp_path: Path, model_folder: Path, paired_dataset: Dataset) -> Bench:
    return Bench(tmp_path, model_folder, paired_dataset)


def begun(bench: Bench, rank: int, number: int) -> Kill:
    """A signal to a rank in the midst of training, whose hearts have told of steps."""
    return Kill(rank, str(bench.output / "metrics.jsonl"), lines=2, number=number, after_s=3.0)


def assert_told(ended: Ended, *ranks: int, parts: tuple[str, ...]) -> str:
    """One line says which ranks (with a host) and each of `parts`; no rank ended well; the line is returned."""
    assert not ended.timed_out, str(ended)
    assert 0 not in ended.codes, str(ended)
    assert len(ended.errors) == 1, str(ended)
    line = ended.errors[0]
    assert [int(rank) for rank in re.findall(r"rank (\d+) \(\S+\)", line)] == list(ranks), str(ended)
    for part in parts:
        assert part in line, str(ended)
    return line


def stacks(bench: Bench, rank: int) -> str:
    return (RunFolder(bench.output).stacks / f"local_{rank}.txt").read_text()


@pytest.mark.parametrize("frozen", [0, 1])
def test_a_frozen_rank_is_named_and_the_other_writes_its_stacks_and_ends(bench: Bench, frozen: int) -> None:
    ended = bench.run(size=2, blocks={**LIMITS, **MANY}, kill=begun(bench, frozen, signal.SIGSTOP))
    line = assert_told(ended, frozen, parts=("not been heard of for 5 s", "last in step"))
    assert ended.codes[1 - frozen] == 1
    assert "in train" in stacks(bench, 1 - frozen)
    cause = RunFolder(bench.output).stacks / "local_cause.txt"
    assert f"error: {cause.read_text()}" == f"{line}\n"


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_rank_is_named_and_the_other_writes_its_stacks_and_ends(bench: Bench, killed: int) -> None:
    ended = bench.run(size=2, blocks={**LIMITS, **MANY}, kill=begun(bench, killed, signal.SIGKILL))
    assert_told(ended, killed, parts=("is gone", "last heard of in step"))
    assert ended.codes[killed] == -9
    assert ended.codes[1 - killed] == 1
    assert "in train" in stacks(bench, 1 - killed)


@pytest.mark.parametrize("size", [1, 2])
def test_a_rank_that_waits_for_its_data_for_ever_is_named(bench: Bench, size: int) -> None:
    ended = bench.run(size=size, blocks={**LIMITS, **MANY}, module="tests.support.stuck")
    told = ("stands still for 8 s in waiting for data after step", ": shards/storage/files.py:", "stacks")
    assert_told(ended, size - 1, parts=told)
    assert ended.codes == [1] * size
    for each in range(size):
        assert "in train" in stacks(bench, each)
    assert "in stuck" in stacks(bench, size - 1), "the stack of the thread that reads is there too"


def test_a_rank_in_a_collective_that_never_ends_still_ends_when_told_to_stop(bench: Bench) -> None:
    freeze, terminate = begun(bench, 1, signal.SIGSTOP), begun(bench, 0, signal.SIGTERM)
    patient = {"health": {"silent_seconds": 200}, **MANY}
    ended = bench.run(size=2, blocks=patient, kill=freeze, later=terminate)
    assert_told(ended, 1, parts=("not been heard of for 10 s",))
    assert ended.codes[0] == 1
    assert "in train" in stacks(bench, 0), "before a launcher would kill it"


def test_a_run_that_is_slow_but_moves_goes_on(bench: Bench) -> None:
    # Loading the model and saving take several times the limit, tensor by tensor.
    blocks = {"health": {"silent_seconds": SILENT_S, "hang_minutes": 3 / 60}, "optimization": {"steps": 1}}
    ended = bench.run(size=2, blocks=blocks, module="tests.support.slow")
    assert ended.codes == [0, 0], str(ended)
    assert ended.seconds > 8
    assert len(trained(bench.output)) == 1
    assert not list(RunFolder(bench.output).stacks.glob("*"))
