"""What most hosts have is right, or at least no node's fault; what few have is theirs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from dist_trainer.preflight.finding import Finding
from dist_trainer.preflight.limit import Outcome

Reports = Sequence[Mapping[str, Outcome]]  # of each rank: name of a trial -> its outcome


def faults(outcomes: Mapping[str, Outcome], advice: str) -> list[Finding]:
    """A fault of more than half of the hosts is no node's own."""
    faulty = {host: one for host, one in outcomes.items() if one.fault}
    if 2 * len(faulty) <= len(outcomes):
        return [Finding("node", f"{host}: {one.fault}; {advice}", host) for host, one in faulty.items()]
    found: dict[str, tuple[bool, list[str]]] = {}
    for host, one in faulty.items():
        found.setdefault(one.fault, (one.user, []))[1].append(host)
    return [
        Finding(
            "input" if user else "failure",
            text if len(names) == len(outcomes) else f"{', '.join(names)}: {text}",
        )
        for text, (user, names) in found.items()
    ]


def odd(seen: Mapping[str, str], what: str, advice: str) -> list[Finding]:
    """Hosts whose value is not that of most; of two values that are as frequent, rank 0's is right."""
    if len(set(seen.values())) < 2:
        return []
    right = Counter(seen.values()).most_common(1)[0][0]
    first = next(host for host, value in seen.items() if value == right)
    return [
        Finding("node", f"{host}: {what} {value or 'none'}, but {right or 'none'} on {first}; {advice}", host)
        for host, value in seen.items()
        if value != right
    ]


def by_host(hosts: Sequence[str], reports: Reports, name: str) -> dict[str, Outcome]:
    """Outcome of a trial on each host that made it."""
    return {host: report[name] for host, report in zip(hosts, reports, strict=True) if name in report}


def values(hosts: Sequence[str], reports: Reports, name: str) -> dict[str, Any]:
    """What a trial found on each host where nothing was wrong with it."""
    return {host: one.value for host, one in by_host(hosts, reports, name).items() if not one.fault}
