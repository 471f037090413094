"""Judgement on the ranks' devices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from dist_trainer.preflight.figures import size
from dist_trainer.preflight.finding import Finding
from dist_trainer.preflight.judges.majority import Reports, odd

_SLOW = 0.5  # of the median
_USED = 0.15  # of a GPU's memory


def devices(hosts: Sequence[str], reports: Reports) -> list[Finding]:
    """Findings in the ranks' devices. A device that fails is its node's fault, however many do; but where those of most
    nodes are late, what the nodes share is slow.
    """
    found = []
    late = list(dict.fromkeys(hosts[rank] for rank, report in enumerate(reports) if report["device"].late))
    shared = len(late) > 1 and 2 * len(late) > len(set(hosts))
    if shared:
        text = f"devices of {len(late)} of {len(set(hosts))} nodes, {late[0]} first, did not answer in time"
        found.append(
            Finding("failure", f"{text}; is the file system slow from which they load their software?")
        )
    for rank, report in enumerate(reports):
        if report["device"].fault and not (shared and report["device"].late):
            text = f"{hosts[rank]} (rank {rank}): device: {report['device'].fault}; have this node looked at"
            found.append(Finding("node", text, hosts[rank]))
    alive = {
        rank: report["device"].value for rank, report in enumerate(reports) if not report["device"].fault
    }
    kinds = {hosts[rank]: value["kind"] for rank, value in alive.items()}
    found += odd(kinds, "computes on", "are its GPUs and driver there?")
    found += _sharing(hosts, alive)
    gpus = {rank: value for rank, value in alive.items() if value["kind"] == "cuda"}
    return found + _warnings(hosts, gpus) if gpus else found


def _warnings(hosts: Sequence[str], gpus: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
    """GPUs that are not as the others."""
    models = {hosts[rank]: value["name"] for rank, value in gpus.items()}
    advice = "the slowest sets everybody's pace"
    found = [Finding("warning", one.text) for one in odd(models, "device", advice)]
    usual = median([value["speed"] for value in gpus.values()])
    for rank, value in gpus.items():
        if value["speed"] < _SLOW * usual:
            text = (
                f"{hosts[rank]} (rank {rank}): its GPU computes at {value['speed'] / usual:.0%} of the median"
            )
            found.append(Finding("warning", f"{text}; is it hot, or used by another process?"))
        used = value["memory"] - value["free"]
        if used > _USED * value["memory"]:
            text = f"{hosts[rank]} (rank {rank}): {size(used)} of its GPU's memory are in use; by another process?"
            found.append(Finding("warning", text))
    return found


def _sharing(hosts: Sequence[str], alive: Mapping[int, Mapping[str, Any]]) -> list[Finding]:
    """Ranks that would compute on one GPU."""
    users: dict[tuple[str, str], list[int]] = {}
    for rank, value in alive.items():
        if value.get("uuid"):
            users.setdefault((hosts[rank], value["uuid"]), []).append(rank)
    crowded = {host: ranks for (host, _), ranks in users.items() if len(ranks) > 1}
    shared = 2 * len(crowded) > len(set(hosts))
    found = []
    for host, ranks in crowded.items():
        text = f"{host}: ranks {', '.join(map(str, ranks))} share one GPU of {alive[ranks[0]]['visible']} visible"
        advice = "start one process per GPU" if shared else "are all its GPUs alive?"
        found.append(Finding("input" if shared else "node", f"{text}; {advice}", host))
    return found
