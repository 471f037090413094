from __future__ import annotations

import itertools

from dist_trainer.preflight.judges.network import network, pairs
from dist_trainer.preflight.limit import Outcome

GB = 1e9


def exchanged(hosts: list[str], slow: dict[tuple[int, int], float]) -> list[dict[str, Outcome]]:
    """Reports of a tournament in which all pairs but some have 10 GB/s."""
    met: list[list[tuple[int, float]]] = [[] for _ in hosts]
    for one, other in itertools.combinations(range(len(hosts)), 2):
        speed = slow.get((one, other), 10 * GB)
        met[one].append((other, speed))
        met[other].append((one, speed))
    return [{"network": Outcome({"sum": GB, "pairs": found})} for found in met]


def test_even_pairs_bring_no_findings() -> None:
    hosts = ["a", "b", "c", "d"]
    assert network(hosts, exchanged(hosts, {})) == []


def test_a_slow_pair_is_named_by_its_hosts() -> None:
    hosts = ["a", "b", "c", "d"]
    [found] = network(hosts, exchanged(hosts, {(1, 3): GB}))
    assert (found.kind, found.text) == (
        "warning",
        "b and d: 1 GB/s between them, the median pair has 10 GB/s",
    )


def test_a_host_that_is_slow_with_most_is_named_once() -> None:
    hosts = ["a", "b", "c", "d", "e"]
    [found] = network(hosts, exchanged(hosts, {(0, 2): GB, (1, 2): 2 * GB, (2, 3): GB, (2, 4): GB}))
    assert found.kind == "warning"
    assert found.text.startswith("c: slow with 4 of 4 others, 1 GB/s at worst")


def test_the_slowest_lane_counts_for_its_pair_and_ranks_of_one_host_are_pairs_too() -> None:
    reports = [{"network": Outcome({"sum": GB, "pairs": [(rank ^ 2, (1 + rank) * GB)]})} for rank in range(4)]
    assert pairs(["a", "a", "b", "b"], reports) == {("a", "b"): GB}
    assert pairs(["a"] * 4, reports) == {("rank 0", "rank 2"): GB, ("rank 1", "rank 3"): 2 * GB}


def test_who_fails_is_blamed_and_not_who_waits_for_it() -> None:
    late, broken = Outcome(fault="x: did not end", late=True), Outcome(fault="x: no such device mlx5_0")
    hosts = ["a", "b", "c"]
    reports = [{"network": one} for one in (late, broken, late)]
    assert [(one.kind, one.host) for one in network(hosts, reports)] == [("node", "b")]
    assert [(one.kind, one.host) for one in network(hosts, [{"network": late}] * 3)] == [("failure", "")]
    assert [(one.kind, one.host) for one in network(hosts, [{"network": broken}] * 3)] == [("failure", "")]
