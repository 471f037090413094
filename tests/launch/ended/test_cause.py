"""What a job ended of: the first rank that ended badly, in one line, whatever the others said and did after it."""

from __future__ import annotations

from pathlib import Path

import pytest

from dist_trainer.logs import append
from dist_trainer.rundir import RunFolder, write_text
from launch.ended.cause import TOO_EARLY, ending, mark, srun_log


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with room for logs."""
    folder = RunFolder(tmp_path)
    folder.ranks.mkdir(parents=True)
    return folder


def says(run: RunFolder, srun: str = "", **ranks: str) -> None:
    """What srun printed, and ranks as r0="...", for job 7."""
    write_text(srun_log(run, "7"), srun)
    for name, text in ranks.items():
        write_text(run.ranks / f"7_{name[1:]}.log", text)


KILLED = (
    "srun: error: node2: task 1: Killed\n"
    "srun: launch/slurm: _step_signal: Terminating StepId=7.0\n"
    "srun: error: node1: task 0: Exited with exit code 1\n"
)


def test_a_killed_rank_is_named_before_those_that_felt_it(run: RunFolder) -> None:
    says(run, KILLED, r0="step 3\nerror: RuntimeError: Connection closed by peer\nTraceback\n", r1="step 3\n")
    end = ending(run, "7", 137)
    assert (end.code, end.cause) == (137, "rank 1 (node2): Killed")
    assert end.shown == ("error: RuntimeError: Connection closed by peer",)


@pytest.mark.parametrize("srun", ["tasks 4-7: Exited with exit code 1", "task 4: Exited with exit code 1"])
def test_a_rank_that_explains_itself_is_quoted_and_the_first_code_counts(run: RunFolder, srun: str) -> None:
    # The others were told to end and, not yet training, end with the code of those that come back.
    others = "srun: error: node1: tasks 0-3: Exited with exit code 85\n"
    says(run, f"srun: error: node2: {srun}\n{others}", r0="", r4="error: out of memory\nTraceback\n")
    end = ending(run, "7", 85)
    assert (end.code, end.cause) == (1, "out of memory")


def test_bad_input_that_one_rank_found_counts_whoever_ended_first(run: RunFolder) -> None:
    said = "srun: error: node2: task 1: Exited with exit code 1\nsrun: error: node1: task 0: Exited with exit code 2\n"
    says(run, said, r0="error: output_dir: cannot be written\n", r1="rank 1 ends: rank 0 failed or is gone\n")
    end = ending(run, "7", 2)
    assert (end.code, end.cause) == (2, "output_dir: cannot be written")


@pytest.mark.parametrize("how", ["Exited with exit code 85", "User defined signal 2", "Terminated"])
def test_a_rank_told_to_stop_comes_back_also_before_it_could_listen(run: RunFolder, how: str) -> None:
    says(run, f"srun: error: node1: task 0: {how}\n", r0="saved after step 4\n")
    assert ending(run, "7", 85).code == 85


def test_what_was_told_to_end_before_its_first_step_has_saved_nothing(run: RunFolder) -> None:
    for step in (0, 4):
        append(run.jobs, {"event": "began", "job": "7", "step": step})
        assert ending(run, "7", 85).cause == TOO_EARLY
        checkpoint = run.checkpoints / f"step_{step + 4:06d}"
        checkpoint.mkdir(parents=True)
        write_text(checkpoint / "checkpoint.json", "{}")
        assert ending(run, "7", 85).cause == "told to end, and saved"


def test_a_lost_node_is_named(run: RunFolder) -> None:
    says(run, "srun: error: Node failure on node2\nsrun: error: node1: task 0: Killed\n")
    assert ending(run, "7", 137).cause == "Node failure on node2"


def test_srun_itself_is_quoted_where_no_rank_began(run: RunFolder) -> None:
    says(run, "srun: error: Unable to create step for job 7: Invalid partition\n")
    assert ending(run, "7", 1).cause == "Unable to create step for job 7: Invalid partition"


def test_what_was_said_before_this_start_is_passed_over(run: RunFolder) -> None:
    says(run, r0="error: an old one\n", r1="error: an old one too\n")
    mark(run, "7", 1)
    with (run.ranks / "7_1.log").open("a") as log:
        log.write("step 5\nerror: a new one\n")
    assert ending(run, "7", 1).cause == "a new one"


def test_the_last_lines_of_rank_0_are_shown_where_all_went_well(run: RunFolder) -> None:
    says(run, r0="".join(f"step {step}\n" for step in range(9)) + "done: 9 steps\n")
    assert ending(run, "7", 0).shown == ("step 5", "step 6", "step 7", "step 8", "done: 9 steps")


def test_a_job_without_logs_has_an_end_too(run: RunFolder) -> None:
    assert ending(run, "7", 3).cause == "exit code 3, and no rank said why"
