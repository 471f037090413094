"""How the ranks meet, and who is named when one does not come."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
import torch.distributed as torch_dist

from dist_trainer.world import World, address, hostname

_AGENT_STORE = "TORCHELASTIC_USE_AGENT_STORE"
_COMPLETE = "complete:"
FAILED = "failed"  # key: who failed first; its value ends with `watch` where the watch found it
PREFIX = "ltx"
# 0: torch's own watchdog of NCCL says what it finds, and leaves it to the watch, which says who is gone, to end the
# process. Its default aborts it, and cleaning up (1, 2) would let training go on with what no rank has sent.
_NCCL_ERRORS = ("TORCH_NCCL_ASYNC_ERROR_HANDLING", "0")


class MissingRanks(RuntimeError):
    """Some ranks did not come to a meeting within its limit; the message names them.

    `ranks`: those, as far as this rank can tell: rank 0 knows all, the others only whether rank 0 itself is silent.
    """

    def __init__(self, message: str, ranks: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.ranks = tuple(ranks)


class Gathering:
    """The ranks of a run, joined through one key-value store; every wait has a limit and names who was missing."""

    def __init__(self, world: World, store: torch_dist.Store, timeout_s: float) -> None:
        self.world = world
        self.timeout_s = timeout_s
        self._shared = store
        self._store = torch_dist.PrefixStore(PREFIX, store)
        self._turns = 0
        self._store.set(f"host/{world.rank}", hostname(os.environ))

    def meet(self, purpose: str, timeout_s: float | None = None) -> None:
        """Wait for all ranks; raises MissingRanks naming rank and host of who did not come in `timeout_s` seconds.

        A rank that reports its failure in the meantime ends the meeting at once.
        """
        limit = self.timeout_s if timeout_s is None else timeout_s
        self._turns += 1
        name = f"turn/{self._turns}"
        try:
            self._store.set(f"at/{self.world.rank}", str(self._turns))
            self._store.add(f"{name}/came", 1)
        except (RuntimeError, torch_dist.DistError) as error:
            raise MissingRanks(f"{purpose}: rank 0 did not answer, its store is gone", [0]) from error
        missing: list[int] = []
        if self.world.is_main:
            # One key for all ranks: it is asked for many times a second.
            came = self._wait(lambda: self._store.add(f"{name}/came", 0) == self.world.size, limit)
            missing = [] if came else [rank for rank in range(self.world.size) if not self._has_come(rank)]
            self._store.set(f"{name}/result", self._verdict(missing, limit))
        try:
            # Rank 0 speaks at the limit; the extra seconds let its verdict arrive.
            self._result(purpose, limit, limit + 15)
        except MissingRanks as error:
            if missing and not self._store.check([FAILED]):
                error.ranks = tuple(missing)
            raise

    def collect(self, purpose: str, value: str, timeout_s: float | None = None) -> list[str]:
        """Meet, bringing a text: rank 0 gets all ranks' texts in their order, the others an empty list.

        Raises MissingRanks as `meet` does.
        """
        keys = [f"collect/{self._turns}/{rank}" for rank in range(self.world.size)]
        self._store.set(keys[self.world.rank], value)
        self.meet(purpose, timeout_s)
        if not self.world.is_main:
            return []
        values = [self._store.get(key).decode() for key in keys]
        for key in keys:
            self._store.delete_key(key)
        return values

    def store(self, name: str) -> torch_dist.Store:
        """A part of the common store for another purpose."""
        return torch_dist.PrefixStore(name, self._shared)

    def twin(self) -> torch_dist.Store:
        """The ranks' common store through a client of its own: the calls of one client wait for each other."""
        return self._store.clone()  # type: ignore[attr-defined]

    def share(self, name: str, value: str, timeout_s: float | None = None) -> str:
        """Rank 0's `value`, on every rank. Raises MissingRanks where it does not come in `timeout_s` seconds."""
        limit = self.timeout_s if timeout_s is None else timeout_s
        self._turns += 1
        if self.world.is_main:
            self._store.set(f"turn/{self._turns}/result", _COMPLETE + value)
        return self._result(name, limit, limit)

    def first_to_fail(self) -> tuple[int, bool] | None:
        """Report that this rank failed. Returns the rank that failed first, and whether it falls to this one to say
        why; None when the store is gone, and with it rank 0."""
        try:
            found = self._store.compare_set(FAILED, "", str(self.world.rank)).decode()
            first, mine = int(found.split()[0]), found == str(self.world.rank)
            self._store.set(f"ended/{self.world.rank}", "1")
            if self.world.is_main:
                # The others may wait for rank 0's word, or come to do so.
                for turn in (self._turns, self._turns + 1):
                    self._store.compare_set(f"turn/{turn}/result", "", f"{self.describe([first])} failed")
            return first, mine
        except (RuntimeError, torch_dist.DistError):
            return None

    def linger(self, spoke: bool, limit: float) -> None:
        """Stay while other ranks need this one: rank 0 serves the store that says who failed, and a rank that has
        nothing to say leaves the first word to the one that has, as a launcher ends everybody with the first.

        Rank 0 waits at most `limit` seconds for all to report that they end.
        """
        if self.world.size == 1:
            return
        if self.world.is_main:
            self._wait(lambda: self._all_have_set("ended"), limit, failed=True)
        elif not spoke:
            time.sleep(2.0)

    def close(self) -> None:
        """Part: rank 0, which serves the store, leaves last (but waits no longer than ten seconds)."""
        self._store.set(f"left/{self.world.rank}", "1")
        if self.world.is_main:
            self._wait(lambda: self._all_have_set("left"), 10.0)

    def _result(self, purpose: str, limit: float, wait_s: float) -> str:
        """Rank 0's word on this turn. Raises MissingRanks when it is not a good one, or none came in `wait_s`."""
        key = f"turn/{self._turns}/result"
        try:
            self._store.wait([key], timedelta(seconds=wait_s))
            result = self._store.get(key).decode()
        except (RuntimeError, torch_dist.DistError) as error:
            raise MissingRanks(f"{purpose}: rank 0 did not answer within {limit:g} s", [0]) from error
        if not result.startswith(_COMPLETE):
            raise MissingRanks(f"{purpose}: {result}")
        return result.removeprefix(_COMPLETE)

    def _has_come(self, rank: int) -> bool:
        key = f"at/{rank}"
        return self._store.check([key]) and int(self._store.get(key)) >= self._turns

    def _all_have_set(self, name: str) -> bool:
        return self._store.check([f"{name}/{rank}" for rank in range(self.world.size)])

    def _wait(self, done: Callable[[], bool], limit: float, failed: bool = False) -> bool:
        """Whether it is `done` within `limit` seconds, and before a rank fails (unless that has happened)."""
        deadline = time.monotonic() + limit
        while time.monotonic() < deadline:
            if done():
                return True
            if not failed and self._store.check([FAILED]):
                break
            time.sleep(0.02)
        return False

    def _verdict(self, missing: list[int], limit: float) -> str:
        if not missing:
            return _COMPLETE
        if self._store.check([FAILED]):
            return f"{self.describe([int(self._store.get(FAILED).split()[0])])} failed"
        return f"after {limit:g} s still missing {self.describe(missing)}"

    def describe(self, ranks: Sequence[int]) -> str:
        """Ranks with their hosts, in words."""
        named = []
        for rank in ranks[:8]:
            known = self._store.check([f"host/{rank}"])
            named.append(
                f"rank {rank} ({self._store.get(f'host/{rank}').decode() if known else 'never seen'})"
            )
        more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
        return ", ".join(named) + more


def connect(world: World, timeout_s: float) -> Gathering:
    """Reach the ranks' common store, which rank 0 serves, without waiting for anybody else.

    Raises MissingRanks when it cannot be reached within `timeout_s` seconds, InputError when its place is not known.
    """
    host, port = address(os.environ, world)
    # torchrun's agent already serves a store on MASTER_PORT; everybody is a client of it there.
    serves = world.is_main and os.environ.get(_AGENT_STORE) != "True"
    limit = timedelta(seconds=timeout_s)
    try:
        store = torch_dist.TCPStore(host, port, world.size, serves, limit, wait_for_workers=False)
    except (RuntimeError, torch_dist.DistError) as error:
        raise MissingRanks(
            f"start: rank 0 is not reachable at {host}:{port} within {timeout_s:g} s"
        ) from error
    # DeepSpeed reads these to place a rank; Slurm and a lone process do not set them. Its LOCAL_RANK is the device's
    # number, which is not the rank's on its host where each task sees one GPU only.
    device = world.device.index if world.device.type == "cuda" else world.local_rank
    os.environ.update(
        RANK=str(world.rank), WORLD_SIZE=str(world.size), LOCAL_RANK=str(device), MASTER_ADDR=host
    )
    os.environ["MASTER_PORT"] = str(store.port)
    shared = torch_dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
    return Gathering(world, shared, timeout_s)


def start(gathering: Gathering) -> None:
    """Meet the other ranks, then start torch.distributed (NCCL on GPUs, gloo on CPUs).

    What NCCL finds wrong ends no process by itself, unless the environment says so.
    Raises MissingRanks when not everybody came within the gathering's limit.
    """
    gathering.meet("start")
    world = gathering.world
    if world.device.type == "cuda":
        torch.cuda.set_device(world.device)
    os.environ.setdefault(*_NCCL_ERRORS)
    torch_dist.init_process_group(
        "nccl" if world.device.type == "cuda" else "gloo",
        store=gathering.store("group"),
        rank=world.rank,
        world_size=world.size,
        timeout=timedelta(seconds=gathering.timeout_s),
    )


def join(world: World, timeout_s: float) -> Gathering:
    """Connect and start. Raises what these raise."""
    gathering = connect(world, timeout_s)
    start(gathering)
    return gathering


def started() -> bool:
    """Whether torch.distributed runs in this process."""
    return torch_dist.is_initialized()


def leave() -> None:
    """End torch.distributed in this process."""
    if torch_dist.is_initialized():
        torch_dist.destroy_process_group()
