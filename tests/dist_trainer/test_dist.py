from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
import torch
import torch.distributed as torch_dist

from dist_trainer.dist import FAILED, Gathering, MissingRanks, join, leave, started
from dist_trainer.world import World
from tests.support.gatherings import at_once, over_tcp
from tests.support.runs import free_port

NCCL_ERRORS = "TORCH_NCCL_ASYNC_ERROR_HANDLING"


@pytest.fixture(autouse=True)
def _stores_end_with_their_test() -> Iterator[None]:
    """A store kept alive by an exception's frames would end in the middle of a later test, which waits for it."""
    yield
    gc.collect()


def test_a_meeting_ends_when_all_have_come_and_not_before() -> None:
    _, gatherings = over_tcp(3)
    arrived: list[int] = []

    def act(gathering: Gathering) -> int:
        time.sleep(0.2 * gathering.world.rank)
        arrived.append(gathering.world.rank)
        gathering.meet("test")
        return len(arrived)

    assert at_once(act, gatherings) == [3, 3, 3]


def test_a_missing_rank_is_named_with_its_host_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts = iter(["node0", "node1", "node2"])
    monkeypatch.setattr(socket, "gethostname", lambda: next(hosts))
    _, gatherings = over_tcp(4, ranks=[0, 1, 2])
    began = time.monotonic()
    errors = at_once(lambda g: g.meet("loading", 0.5), gatherings[:2])
    assert 0.5 <= time.monotonic() - began < 3
    for error in errors:
        assert isinstance(error, MissingRanks)
        assert "loading: after 0.5 s still missing rank 2 (node2), rank 3 (never seen)" in str(error)


def test_who_came_to_the_first_meeting_is_still_missed_at_the_second() -> None:
    _, gatherings = over_tcp(2, timeout_s=0.5)
    assert at_once(lambda g: g.meet("first"), gatherings) == [None, None]
    with pytest.raises(MissingRanks, match=r"second: .* missing rank 1"):
        gatherings[0].meet("second")


def test_many_missing_ranks_are_counted() -> None:
    _, [main] = over_tcp(13, ranks=[0])
    with pytest.raises(MissingRanks, match=r"rank 1 \(never seen\), .*rank 8 \(never seen\) and 4 more$"):
        main.meet("start", 0.1)


def test_a_failed_rank_ends_a_meeting_at_once_and_is_named() -> None:
    _, gatherings = over_tcp(3, timeout_s=60)

    def act(gathering: Gathering) -> None:
        if gathering.world.rank == 2:
            time.sleep(0.2)
            gathering.first_to_fail()
        else:
            gathering.meet("saving")

    began = time.monotonic()
    errors = at_once(act, gatherings)
    assert time.monotonic() - began < 5
    for error in errors[:2]:
        assert isinstance(error, MissingRanks)
        assert str(error) == f"saving: rank 2 ({socket.gethostname()}) failed"


def test_a_lost_rank_0_is_named() -> None:
    server, [other] = over_tcp(2, ranks=[1], timeout_s=60)
    del server
    with pytest.raises(MissingRanks, match="start: rank 0 did not answer"):
        other.meet("start", 1.0)


def test_texts_are_collected_in_the_order_of_ranks() -> None:
    _, gatherings = over_tcp(3)

    def act(gathering: Gathering) -> list[list[str]]:
        return [gathering.collect("test", f"{turn}{gathering.world.rank}") for turn in "ab"]

    assert at_once(act, gatherings) == [[["a0", "a1", "a2"], ["b0", "b1", "b2"]], [[], []], [[], []]]


def test_a_large_text_is_collected_whole() -> None:
    _, gatherings = over_tcp(2)
    results = at_once(lambda g: g.collect("test", str(g.world.rank) * (4 << 20)), gatherings)
    assert results == [["0" * (4 << 20), "1" * (4 << 20)], []]


def test_every_rank_gets_the_value_of_rank_0() -> None:
    _, gatherings = over_tcp(3)
    assert at_once(lambda g: g.share("seed", f"from {g.world.rank}"), gatherings) == ["from 0"] * 3


def test_a_value_that_rank_0_never_shares_is_not_waited_for_without_end() -> None:
    _server, [_, other] = over_tcp(2, timeout_s=0.5)
    with pytest.raises(MissingRanks, match="seed: rank 0 did not answer"):
        other.share("seed", "x")


def test_one_rank_speaks_when_all_fail() -> None:
    _, gatherings = over_tcp(4)
    first = {known[0] for known in at_once(lambda g: g.first_to_fail(), gatherings)}
    assert len(first) == 1
    (speaker,) = first
    again = [(speaker, rank == speaker) for rank in range(4)]
    assert at_once(lambda g: g.first_to_fail(), gatherings) == again


def test_no_rank_speaks_of_a_failure_that_the_watch_has_found() -> None:
    _, gatherings = over_tcp(2)
    gatherings[0].twin().compare_set(FAILED, "", "1 watch")
    assert at_once(lambda g: g.first_to_fail(), gatherings) == [(1, False)] * 2
    with pytest.raises(MissingRanks, match=r"saving: rank 1 \(\S+\) failed$"):
        gatherings[0].meet("saving")


def test_a_twin_answers_while_its_gathering_waits() -> None:
    _server, (_, other) = over_tcp(2)
    ended: list[str] = []

    def wait() -> None:
        with pytest.raises(MissingRanks):
            other.share("seed", "", timeout_s=1.0)
        ended.append("wait")

    def talk() -> None:
        time.sleep(0.2)
        other.twin().set("a", "b")
        ended.append("talk")

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda act: act(), [wait, talk]))
    assert ended == ["talk", "wait"]


def test_where_the_store_is_gone_rank_0_went_first() -> None:
    server, [other] = over_tcp(2, ranks=[1])
    del server
    assert other.first_to_fail() is None


@pytest.mark.parametrize("wait", ["meet", "share"])
@pytest.mark.parametrize("late", [False, True], ids=["while-they-wait", "before-they-come"])
def test_the_failure_of_rank_0_ends_what_the_others_wait_for(wait: str, late: bool) -> None:
    _, [main, other] = over_tcp(2, timeout_s=60)

    def act(gathering: Gathering) -> None:
        time.sleep(0.2 * (gathering.world.is_main != late))
        if gathering.world.is_main:
            gathering.first_to_fail()
        elif wait == "meet":
            gathering.meet("saving")
        else:
            gathering.share("seed", "")

    began = time.monotonic()
    [_, error] = at_once(act, [main, other])
    assert time.monotonic() - began < 5
    assert isinstance(error, MissingRanks)
    assert str(error).endswith(f": rank 0 ({socket.gethostname()}) failed")


def test_after_a_failure_rank_0_stays_until_all_have_told_their_end() -> None:
    _, gatherings = over_tcp(3)
    ended: list[int] = []

    def act(gathering: Gathering) -> int:
        time.sleep(0.2 * gathering.world.rank)
        ended.append(gathering.world.rank)
        gathering.first_to_fail()
        if gathering.world.is_main:
            gathering.linger(True, 20.0)
        return len(ended)

    assert at_once(act, gatherings) == [3, 2, 3]


def test_after_a_failure_rank_0_waits_no_longer_than_its_limit() -> None:
    _, gatherings = over_tcp(3)
    at_once(lambda g: g.first_to_fail(), gatherings[:2])
    began = time.monotonic()
    gatherings[0].linger(True, 0.3)
    assert 0.3 <= time.monotonic() - began < 2


def test_alone_nobody_is_waited_for() -> None:
    _, [main] = over_tcp(1)
    main.first_to_fail()
    began = time.monotonic()
    main.linger(False, 20.0)
    assert time.monotonic() - began < 1


def test_rank_0_leaves_last() -> None:
    _, gatherings = over_tcp(2)
    left: list[int] = []

    def act(gathering: Gathering) -> None:
        if not gathering.world.is_main:
            time.sleep(0.3)
            left.append(gathering.world.rank)
        gathering.close()
        if gathering.world.is_main:
            left.append(0)

    at_once(act, gatherings)
    assert left == [1, 0]


@pytest.fixture
def environ(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """An environment without launcher, as it was again afterwards; and no process group left over."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", NCCL_ERRORS):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC_"))]:
        monkeypatch.delenv(name)
    yield monkeypatch
    leave()


@pytest.mark.parametrize("agent", [False, True], ids=["alone", "store-of-torchruns-agent"])
def test_joining_starts_torch_distributed_and_leaving_ends_it(
    environ: pytest.MonkeyPatch, agent: bool
) -> None:
    if agent:
        server = torch_dist.TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=20), wait_for_workers=False)
        environ.setenv("MASTER_ADDR", "127.0.0.1")
        environ.setenv("MASTER_PORT", str(server.port))
        environ.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
        environ.setenv("TORCHELASTIC_RESTART_COUNT", "2")
    gathering = join(World(0, 1, 0), 20)
    value = torch.ones(3)
    torch_dist.all_reduce(value)
    assert value.tolist() == [1, 1, 1]
    assert started()
    assert (torch_dist.get_rank(), torch_dist.get_world_size(), torch_dist.get_backend()) == (0, 1, "gloo")
    # deepspeed looks for its place here.
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")] == ["0", "1", "0"]
    assert int(os.environ["MASTER_PORT"]) > 0
    assert os.environ[NCCL_ERRORS] == "0", "the watch ends ranks, not NCCL's own"
    gathering.close()
    leave()
    assert not started()


def test_a_rank_that_never_starts_is_named_at_the_start(environ: pytest.MonkeyPatch) -> None:
    environ.setenv("MASTER_ADDR", "127.0.0.1")
    environ.setenv("MASTER_PORT", str(free_port()))
    with pytest.raises(MissingRanks, match=r"start: .*missing rank 1 \(never seen\)"):
        join(World(0, 2, 0), 1)
    assert not torch_dist.is_initialized()


def test_a_rank_0_that_never_starts_is_named_with_its_address(environ: pytest.MonkeyPatch) -> None:
    port = free_port()
    environ.setenv("MASTER_ADDR", "127.0.0.1")
    environ.setenv("MASTER_PORT", str(port))
    began = time.monotonic()
    with pytest.raises(MissingRanks, match=f"rank 0 is not reachable at 127.0.0.1:{port}"):
        join(World(1, 2, 1), 1)
    assert time.monotonic() - began < 10
