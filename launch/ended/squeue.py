"""What Slurm says of jobs, of many with one question. Where there is no Slurm, nothing is known of any."""

from __future__ import annotations

import shutil
from collections.abc import Iterable

from dist_trainer.job import LOCAL
from launch.ended.asking import ask_slurm
from launch.ended.requeue import Place
from shards.errors import InputError

_SQUEUE, _SACCT = "%i|%A|%T|%r|%S|%e|%N", "JobID,JobIDRaw,State,Start,End,NodeList"


def places(jobs: Iterable[str]) -> dict[str, Place]:
    """What Slurm knows of these jobs (numbers, or 12_0 for a task of an array), by job; those it forgot are not in it.

    Raises InputError when Slurm does not answer.
    """
    asked = sorted({job for job in jobs if job and job != LOCAL})
    if not asked or shutil.which("squeue") is None:
        return {}
    found: dict[str, Place] = {}
    for line in _lines(
        "squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(asked)}", f"--format={_SQUEUE}"
    ):
        name, number, *rest = line.split("|", 6)
        state, reason, start, end, nodes = (_known(word) for word in rest)
        place = Place(state, reason, start=start, end=end, nodes=nodes)
        # The task of an array has two names: 12_0, and the number that its own environment says.
        found |= {one: place for one in (name, number) if one in asked}
    if forgotten := [job for job in asked if job not in found]:
        found |= _ended(forgotten)
    return found


def _ended(jobs: list[str]) -> dict[str, Place]:
    """What the accounting knows of jobs that the controller has forgotten."""
    if shutil.which("sacct") is None:
        return {}
    command = (
        "sacct",
        "--allocations",
        "--noheader",
        "--parsable2",
        f"--jobs={','.join(jobs)}",
        f"--format={_SACCT}",
    )
    found: dict[str, Place] = {}
    for line in _lines(*command):
        words = line.split("|")
        if len(words) == 6:
            name, number, state, start, end, nodes = (_known(word) for word in words)
            place = Place(state.partition(" ")[0], "", start=start, end=end, nodes=nodes)
            found |= {one: place for one in (name, number) if one in jobs}
    return found


def _lines(*command: str) -> list[str]:
    """Lines of an answer; none where Slurm knows none of the jobs or keeps no accounts."""
    answer = ask_slurm(*command)
    if answer.later:
        raise InputError(f"{command[0]}: {answer.error}")
    return [line for line in answer.printed.splitlines() if "|" in line]


def _known(word: str) -> str:
    return "" if word in ("N/A", "Unknown", "None", "(null)", "None assigned") else word
