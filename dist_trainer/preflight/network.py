"""The network between ranks: one sum over all, and exchanges between pairs of hosts, each checked and timed."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as torch_dist

from dist_trainer.world import World

# What is sent where the network is fast. On a slow one less is sent: being slow is no fault.
_SUM_BYTES = {"cpu": 4 << 20, "cuda": 256 << 20}
_PAIR_BYTES = {"cpu": 1 << 20, "cuda": 64 << 20}
_LEAST_BYTES = 1 << 16
_FIRST_BYTES = 1 << 20  # tells how fast it is
_SUM_S, _PAIRS_S = 5.0, 15.0  # for all sums, for all exchanges
_TIMES = 3
_ALL_PAIRS = (
    32  # units up to which every pair is tried; above, each unit meets as many others as its number has bits
)


def exercise(
    world: World, hosts: Sequence[str], say: Callable[[str], None], timeout_s: float
) -> dict[str, Any]:
    """This rank's part: `sum`, bytes per second of an all-reduce as its bus carries them, and `pairs`, a list of
    (partner's rank, bytes per second in each direction).

    `hosts`: host of each rank. `say` is told what is being waited for. The ranks talk in a process group of their own,
    of the limit `timeout_s`, whose connections and buffers are gone afterwards. Raises RuntimeError for a wrong result.
    """
    device = world.device
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        say("the all-reduce over all ranks")
        group = torch_dist.new_group(timeout=timedelta(seconds=timeout_s))
        speed = _sum(world, device, group)
        met, pairs = partners(hosts, world.rank), []
        nbytes = pair_bytes(hosts, len(met), speed, _PAIR_BYTES[device.type])
        for partner in met:
            if partner is not None:
                say(f"the exchange with rank {partner} on {hosts[partner]}")
                pairs.append((partner, _exchange(world.rank, partner, nbytes, device, group)))
        say("the end of the exchanges")
        # Nobody goes while another one still hears from it.
        _slowest(0.0, device, group)
        torch_dist.destroy_process_group(group)
        # Training shall find the device's memory whole.
        torch.cuda.empty_cache()
        return {"sum": speed, "pairs": pairs}


def partners(hosts: Sequence[str], rank: int) -> list[int | None]:
    """Whom a rank meets in each round, None where it has nobody. In a round nobody meets two.

    Hosts meet, each rank the one of the same place on the other; on a single host the ranks do.
    """
    names = list(dict.fromkeys(hosts))
    if len(names) == 1:
        return [_partner(rank, len(hosts), turn) for turn in range(_rounds(len(hosts)))]
    places = {name: [other for other, host in enumerate(hosts) if host == name] for name in names}
    own = names.index(hosts[rank])
    lane = places[hosts[rank]].index(rank)
    met: list[int | None] = []
    for turn in range(_rounds(len(names))):
        other = _partner(own, len(names), turn)
        there = places[names[other]] if other is not None else []
        met.append(there[lane] if lane < len(there) else None)
    return met


def _rounds(count: int) -> int:
    return count - 1 + count % 2 if count <= _ALL_PAIRS else (count - 1).bit_length()


def _partner(unit: int, count: int, turn: int) -> int | None:
    if count > _ALL_PAIRS:
        other = unit ^ (1 << turn)
        return other if other < count else None
    # A round-robin tournament: all on a circle but the last, whom the one without a mirror image meets.
    even = count + count % 2
    last = even - 1
    if unit == last:
        other = turn * (even // 2) % last
    else:
        other = (turn - unit) % last
        other = last if other == unit else other
    return other if other < count else None


def pair_bytes(hosts: Sequence[str], rounds: int, speed: float, most: int) -> int:
    """Bytes of an exchange, alike on all ranks, of which all take _PAIRS_S where a host's link carries `speed`: in a
    round all its ranks share it."""
    lanes = max(Counter(hosts).values()) if len(set(hosts)) > 1 else 1
    return _bounded(_PAIRS_S * speed / ((1 + _TIMES) * max(1, rounds) * lanes), most)


def _bounded(nbytes: float, most: int) -> int:
    return int(min(most, max(_LEAST_BYTES, nbytes))) // 4 * 4


def _sum(world: World, device: torch.device, group: torch_dist.ProcessGroup) -> float:
    """Bytes per second of an all-reduce, alike on all ranks: what a ring moves over each link, so that any number of
    ranks compares."""
    share = 2 * (world.size - 1) / world.size
    _sum_s(world, _FIRST_BYTES, device, group)  # the first one connects
    speed = share * _FIRST_BYTES / _slowest(_sum_s(world, _FIRST_BYTES, device, group), device, group)
    nbytes = _bounded(_SUM_S * speed / (share * _TIMES), _SUM_BYTES[device.type])
    best = min(_sum_s(world, nbytes, device, group) for _ in range(_TIMES))
    return share * nbytes / _slowest(best, device, group)


def _sum_s(world: World, nbytes: int, device: torch.device, group: torch_dist.ProcessGroup) -> float:
    """Seconds of one all-reduce."""
    tensor = torch.full((nbytes // 4,), float(world.rank + 1), device=device)
    began = _now(device)
    torch_dist.all_reduce(tensor, group=group)
    seconds = _now(device) - began
    if wrong := int((tensor != world.size * (world.size + 1) // 2).sum()):
        raise RuntimeError(f"an all-reduce gave {wrong} of {tensor.numel()} elements wrong")
    return seconds


def _slowest(seconds: float, device: torch.device, group: torch_dist.ProcessGroup) -> float:
    """The longest time of all ranks."""
    longest = torch.tensor([seconds], dtype=torch.float64, device=device)
    torch_dist.all_reduce(longest, torch_dist.ReduceOp.MAX, group)
    return float(longest)


def _exchange(
    rank: int, partner: int, nbytes: int, device: torch.device, group: torch_dist.ProcessGroup
) -> float:
    """Bytes per second in each direction, both at once."""
    given = torch.full((nbytes // 4,), float(rank), device=device)
    got = torch.empty_like(given)
    best = float("inf")
    for attempt in range(1 + _TIMES):
        got.fill_(-1)
        began = _now(device)
        ends = [
            torch_dist.P2POp(torch_dist.isend, given, partner, group),
            torch_dist.P2POp(torch_dist.irecv, got, partner, group),
        ]
        for work in torch_dist.batch_isend_irecv(ends):
            work.wait()
        if attempt:  # the first one connects, and waits for a partner that comes late
            best = min(best, _now(device) - began)
        if wrong := int((got != partner).sum()):
            raise RuntimeError(f"rank {partner} sent {wrong} of {got.numel()} elements that came wrong")
    return got.nbytes / best


def _now(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
