from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dist_trainer.preflight.finding import Finding
from dist_trainer.preflight.judges.hosts import alone, together
from dist_trainer.preflight.limit import Outcome

RUN = Path("/runs/one")
GIB = 1 << 30


def report(**changed: Any) -> dict[str, Outcome]:
    sound: dict[str, Any] = {
        "code": {"code": "c0de", "torch": "2.13"},
        "data": {"fingerprint": "f00d", "damage": ""},
        "storage": {"speed": 1e9},
        "room": {"one": GIB, "all": 3 * GIB, "free": 9 * GIB},
    }
    every = sound | changed
    return {name: one if isinstance(one, Outcome) else Outcome(one) for name, one in every.items()}


def judged(*reports: dict[str, Outcome]) -> list[Finding]:
    return alone([f"n{number}" for number in range(len(reports))], reports, RUN)


def meet(*seen: list[int], clocks: list[Any] | None = None) -> list[Finding]:
    ahead = [None, *([0.0, 0.01] for _ in seen[1:])] if clocks is None else clocks
    reports = [{"seen": Outcome(one), "clock": Outcome(c)} for one, c in zip(seen, ahead, strict=True)]
    return together([f"n{number}" for number in range(len(seen))], reports, RUN)


def test_hosts_that_have_the_same_bring_no_findings() -> None:
    assert judged(report()) == judged(report(), report(), report()) == []


@pytest.mark.parametrize("part", ["code", "data", "storage"])
def test_a_fault_of_few_is_theirs_and_one_of_most_is_the_users(part: str) -> None:
    bad = report(**{part: Outcome(fault="key: /x: not there", user=True)})
    assert [(one.kind, one.host) for one in judged(report(), bad, report())] == [("node", "n1")]
    assert [(one.kind, one.host) for one in judged(report(), bad)] == [("node", "n1")]
    assert judged(bad, bad) == judged(bad) == [Finding("input", "key: /x: not there")]
    [most] = judged(bad, report(), bad)
    assert (most.kind, most.text) == ("input", "n0, n2: key: /x: not there")


def test_what_hangs_on_all_hosts_is_no_wrong_input() -> None:
    hangs = report(data=Outcome(fault="did not end within 40 s", late=True))
    assert [one.kind for one in judged(hangs, hangs)] == ["failure"]


def test_other_code_is_named_with_both_values_and_another_driver_is_warned_of() -> None:
    code = {"code": "c0de", "torch": "2.13", "driver": "570"}
    own, other = report(code=code), report(code=code | {"code": "bad1"})
    [found] = judged(own, own, other)
    assert found == Finding("node", "n2: code bad1, but c0de on n0; install the same on all hosts", "n2")
    assert [one.host for one in judged(other, own, own)] == ["n0"], "most are right, also against rank 0"
    assert [one.host for one in judged(own, other)] == ["n1"], "of two, rank 0's is right"
    assert [one.kind for one in judged(own, report(code=code | {"driver": "550"}))] == ["warning"]


def test_another_dataset_is_named_and_damage_counts_where_others_read_well() -> None:
    [found] = judged(report(), report(), report(data={"fingerprint": "0dd", "damage": ""}))
    assert (found.kind, found.host) == ("node", "n2")
    assert "0dd, but f00d on n0" in found.text
    damaged = report(data={"fingerprint": "f00d", "damage": "a.tar: sample 'x'"})
    assert [(one.kind, one.host) for one in judged(report(), damaged)] == [("node", "n1")]
    assert [one.kind for one in judged(damaged, damaged)] == ["warning"], "a run replaces what is damaged"


def test_room_for_no_checkpoint_is_refused_and_for_too_few_warned_of() -> None:
    [found] = judged(report(room={"one": GIB, "all": 3 * GIB, "free": GIB // 2}))
    assert found.kind == "input"
    assert "/runs/one: 537 MB are free, a checkpoint takes 1.07 GB" in found.text
    assert [one.kind for one in judged(report(room={"one": GIB, "all": 3 * GIB, "free": 2 * GIB}))] == [
        "warning"
    ]
    assert judged(report(room=Outcome(fault="no such model", user=True))) == [], "the run will say so"


def test_a_folder_that_few_do_not_share_is_theirs_and_else_the_users() -> None:
    assert meet([], [], []) == []
    assert [(one.kind, one.host) for one in meet([2], [], [0], [])] == [("node", "n2")]
    [found] = meet([1], [0])
    assert (found.kind, "every host needs the same folder" in found.text) == ("input", True)


@pytest.mark.parametrize("off", [5.0, -90.0])
def test_a_clock_far_off_the_others_is_warned_of(off: float) -> None:
    [found] = meet([], [], [], clocks=[None, [off, 0.1], [0.0, 0.1]])
    assert (found.kind, f"n1: its clock is {off:+.1f} s off" in found.text) == ("warning", True)
    [found] = meet([], [], [], clocks=[None, [off, 0.1], [off, 0.1]])
    assert f"n0: its clock is {-off:+.1f} s off" in found.text
    assert meet([], [], clocks=[None, [off, 100.0]]) == [], "what cannot be told is not said"
