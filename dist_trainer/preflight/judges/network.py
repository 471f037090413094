"""Judgement on the network: who failed in it, which pairs are slow."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median

from dist_trainer.preflight.figures import size
from dist_trainer.preflight.finding import Finding
from dist_trainer.preflight.judges.majority import Reports

_SLOW = 0.5  # of the median


def network(hosts: Sequence[str], reports: Reports) -> list[Finding]:
    """Findings in the network."""
    outcomes = {rank: report["network"] for rank, report in enumerate(reports)}
    raised = {rank: one for rank, one in outcomes.items() if one.fault and not one.late}
    hung = {rank: one for rank, one in outcomes.items() if one.late}
    blamed = {hosts[rank]: rank for rank in reversed(raised)}
    if blamed and 2 * len(blamed) <= len(set(hosts)):
        # Those who wait for a node that gave up say nothing about themselves.
        return [
            Finding("node", f"{host} (rank {rank}): network: {raised[rank].fault}; look at its links", host)
            for host, rank in blamed.items()
        ]
    for some in (raised, hung):
        if some:
            rank, one = next(iter(some.items()))
            text = f"network: {len(some)} of {len(hosts)} ranks failed, first rank {rank} ({hosts[rank]})"
            return [Finding("failure", f"{text}: {one.fault}; look at the interfaces and links of the hosts")]
    return _slow_pairs(pairs(hosts, reports))


def pairs(hosts: Sequence[str], reports: Reports) -> dict[tuple[str, str], float]:
    """Bytes per second between each pair of hosts, or of ranks on a single host: its slowest lane's."""
    single = len(set(hosts)) == 1
    rates: dict[tuple[str, str], float] = {}
    for rank, report in enumerate(reports):
        value = report["network"].value if "network" in report else None
        for partner, speed in value["pairs"] if value else ():
            low, high = sorted((rank, partner))
            ends = (f"rank {low}", f"rank {high}") if single else (hosts[low], hosts[high])
            ends = ends if single else (min(ends), max(ends))
            rates[ends] = min(speed, rates.get(ends, speed))
    return rates


def _slow_pairs(rates: Mapping[tuple[str, str], float]) -> list[Finding]:
    """Pairs far below the median, a name once where most of its pairs are slow."""
    if len(rates) < 3:
        return []
    usual = median(rates.values())
    slow = {ends: rate for ends, rate in rates.items() if rate < _SLOW * usual}
    tried, bad = Counter(name for ends in rates for name in ends), Counter(n for ends in slow for n in ends)
    whole = {name for name, count in bad.items() if tried[name] > 1 and 2 * count > tried[name]}
    found = []
    for name in sorted(whole):
        worst = min(rate for ends, rate in slow.items() if name in ends)
        text = f"{name}: slow with {bad[name]} of {tried[name]} others, {size(worst)}/s at worst"
        found.append(Finding("warning", f"{text}, the median pair has {size(usual)}/s; look at its links"))
    for (one, other), rate in sorted(slow.items()):
        if not whole & {one, other}:
            text = f"{one} and {other}: {size(rate)}/s between them, the median pair has {size(usual)}/s"
            found.append(Finding("warning", text))
    return found
