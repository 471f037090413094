"""Judgement on what each host has: code, data, the run's folder, a clock."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median_low

from dist_trainer.preflight.code import DRIVER
from dist_trainer.preflight.figures import size
from dist_trainer.preflight.finding import Finding
from dist_trainer.preflight.judges.majority import Reports, by_host, faults, odd, values
from dist_trainer.preflight.limit import Outcome

_SKEW_S = 1.0
_MOUNT = "is it mounted there as on the others?"


def alone(hosts: Sequence[str], reports: Reports, run: Path) -> list[Finding]:
    """Findings in code, dataset, the run's folder and its room."""
    found = faults(by_host(hosts, reports, "code"), "is the code installed there as on the others?")
    found += faults(by_host(hosts, reports, "data"), _MOUNT)
    found += faults(by_host(hosts, reports, "storage"), _MOUNT)
    versions = values(hosts, reports, "code")
    for name in next(iter(versions.values()), {}):
        seen = {host: value.get(name, "") for host, value in versions.items()}
        if name == DRIVER:
            found += [Finding("warning", one.text) for one in odd(seen, name, "it may be slower or fail")]
        else:
            found += odd(seen, name, "install the same on all hosts")
    data = values(hosts, reports, "data")
    prints = {host: value["fingerprint"] for host, value in data.items()}
    found += odd(prints, "the dataset's fingerprint", _MOUNT)
    found += _damage({host: value["damage"] for host, value in data.items()})
    return found + _room(reports[0].get("room", Outcome()), run)


def together(hosts: Sequence[str], reports: Reports, run: Path) -> list[Finding]:
    """Findings in the folder that the hosts share, and in their clocks."""
    lost = set(reports[0]["seen"].value or ())
    for rank, report in enumerate(reports):
        if rank and "seen" in report and (report["seen"].fault or report["seen"].value):
            lost.add(rank)
    others = set(hosts) - {hosts[0]}
    without = sorted({hosts[rank] for rank in lost} - {hosts[0]})
    found: list[Finding] = []
    if 2 * len(without) > len(others):
        text = f"output_dir: {run}: {', '.join(without)} and {hosts[0]} see different folders"
        found.append(Finding("input", f"{text}; every host needs the same folder"))
    else:
        found += [
            Finding("node", f"{host}: output_dir: {run} is another folder than on {hosts[0]}; {_MOUNT}", host)
            for host in without
        ]
    told = {host: value for host, value in values(hosts, reports, "clock").items() if value}
    ahead = {host: offset for host, (offset, unsure) in told.items() if unsure < _SKEW_S / 2}
    middle = median_low([0.0, *ahead.values()])
    for host, offset in {hosts[0]: 0.0, **ahead}.items():
        if abs(offset - middle) > _SKEW_S:
            text = (
                f"{host}: its clock is {offset - middle:+.1f} s off the others'; let ntpd or chronyd set it"
            )
            found.append(Finding("warning", text))
    return found


def _damage(seen: Mapping[str, str]) -> list[Finding]:
    """A sample damaged on few hosts is theirs; on most it is the dataset's, and a run replaces it."""
    hurt = {host: damage for host, damage in seen.items() if damage}
    if 2 * len(hurt) > len(seen):
        return [Finding("warning", next(iter(hurt.values())))]
    return [
        Finding("node", f"{host}: reads {damage}, others read it well", host) for host, damage in hurt.items()
    ]


def _room(outcome: Outcome, run: Path) -> list[Finding]:
    if not outcome.value:
        return []
    one, every, free = (outcome.value[name] for name in ("one", "all", "free"))
    said = f"output_dir: {run}: {size(free)} are free"
    if free < one:
        return [
            Finding("input", f"{said}, a checkpoint takes {size(one)}; make room, or choose another folder")
        ]
    if free < every:
        return [Finding("warning", f"{said}, the checkpoints to come take {size(every)}; make room")]
    return []
