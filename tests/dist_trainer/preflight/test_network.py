from __future__ import annotations

import itertools

import pytest

from dist_trainer.preflight.network import pair_bytes, partners


def meetings(hosts: list[str]) -> list[set[tuple[int, int]]]:
    """Who meets whom in each round; fails where one says so and the other does not."""
    own = [partners(hosts, rank) for rank in range(len(hosts))]
    assert len({len(one) for one in own}) == 1, "all have as many rounds"
    rounds = []
    for met in zip(*own, strict=True):
        for rank, partner in enumerate(met):
            assert partner is None or met[partner] == rank != partner
        rounds.append({(rank, other) for rank, other in enumerate(met) if other is not None and rank < other})
    return rounds


@pytest.mark.parametrize("count", [*range(1, 10), 31, 32])
def test_each_host_meets_each_other_once(count: int) -> None:
    met = [pair for turn in meetings([f"n{number}" for number in range(count)]) for pair in turn]
    assert sorted(met) == list(itertools.combinations(range(count), 2))


def test_many_hosts_meet_few_others_in_few_rounds() -> None:
    rounds = meetings([f"n{number}" for number in range(100)])
    assert len(rounds) == 7
    assert {rank for turn in rounds for pair in turn for rank in pair} == set(range(100))


def test_ranks_of_one_host_meet_each_other() -> None:
    assert sorted(pair for turn in meetings(["n"] * 4) for pair in turn) == [
        *itertools.combinations(range(4), 2)
    ]


def test_ranks_meet_those_of_their_place_on_another_host_all_at_once() -> None:
    assert meetings(["a", "a", "b", "b", "b"]) == [{(0, 2), (1, 3)}]


@pytest.mark.parametrize("count", [2, 4, 32, 64])
def test_a_slow_network_is_asked_for_less_and_a_fast_one_for_all(count: int) -> None:
    """Eight ranks of a host share its link; each round has four exchanges."""
    hosts, most, ethernet, infiniband = [f"n{rank // 8}" for rank in range(8 * count)], 64 << 20, 1e8, 2e11
    rounds = len(partners(hosts, 0))
    assert 0 < 4 * rounds * 8 * pair_bytes(hosts, rounds, ethernet, most) / ethernet <= 16
    assert pair_bytes(hosts, rounds, infiniband, most) == most
    assert pair_bytes(["n"] * 8, 7, infiniband, most) == most
